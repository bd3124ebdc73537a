"""A plain CPU schedule for float convolutions and matrix products: TVM's default leaves their loops serial and scalar."""

from __future__ import annotations

from typing import Any

from edgeq.backends.tvm.tuning import is_tuned


def schedule_floats(module: Any) -> Any:
    """`module` with its float sums running along the innermost output axis, and their outer axes in parallel.

    Kernels of our own and tuned ones are left alone, and so is any kernel whose loops do not allow it.
    """
    from tvm import s_tir, tirx

    for variable, function in list(module.functions.items()):
        if not isinstance(function, tirx.PrimFunc) or "edgeq.kind" in function.attrs or is_tuned(function):
            continue
        schedule = s_tir.Schedule(function)
        try:
            for block in schedule.get_child_blocks(schedule.get_sblock("root")):
                _sum(schedule, block)
        except s_tir.ScheduleError:
            continue
        module.update_func(variable, schedule.mod["main"])
    return module


def _sum(schedule: Any, block: Any) -> None:
    """Reorder one reduction block: outer outputs in parallel, then the sum, then a vector of outputs."""
    from tvm import tirx

    axes, loops = schedule.get(block).iter_vars, schedule.get_loops(block)
    if len(axes) != len(loops):  # a sum of everything has an axis of size 1 and no loop for it
        return
    spatial = [loop for axis, loop in zip(axes, loops, strict=True) if axis.iter_type == tirx.IterVar.DataPar]
    summed = [loop for axis, loop in zip(axes, loops, strict=True) if axis.iter_type == tirx.IterVar.CommReduce]
    if not summed or len(spatial) < 2:
        return
    schedule.reorder(*spatial[:-1], *summed, spatial[-1])
    schedule.parallel(schedule.fuse(*spatial[:-1]))
    schedule.vectorize(spatial[-1])
    schedule.decompose_reduction(block, summed[0])
