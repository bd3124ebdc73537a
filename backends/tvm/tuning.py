"""Meta-schedule for float kernels: schedules drawn at random, timed on this host, the best kept in a log beside the artefact.

Integer kernels are our own (sums.py) and already scheduled; TVM's default for float is loops in the order of the operator's
definition. Shao et al. 2022, Tensor Program Optimization with Probabilistic Programs, arXiv 2205.13603; of its search only the
space of schedules is used, sampled without a cost model.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeq.graph.quiet import quiet
from edgeq.spec import EdgeqError, Progress

FOLDER: Final = "tuning"  # beside the artefact
FILES: Final = ("database_workload.json", "database_tuning_record.json")  # as meta-schedule names them
AT_ONCE: Final = 8  # candidates between two reports of progress
LEAST_MS: Final = 5  # a candidate is timed for so long, three times
MANY: Final = 1 << 30  # candidates: all there are
FAILED_S: Final = 1e10  # the time of a candidate that does not build, as meta-schedule has it


def search(module: Any, target: Any, folder: Path, trials: int, progress: Progress) -> None:
    """Time candidates for every float kernel of `module` until the log in `folder` knows `trials` of each.

    The log grows with every candidate, so an interrupted search goes on where it was.

    Raises:
        EdgeqError: the log is damaged, or psutil, which meta-schedule needs, is missing.
    """
    progress("load TVM's tuner", 0, None)
    with quiet():
        try:
            ms = _meta_schedule()
        except ImportError as error:
            raise EdgeqError(f"tuning needs {error.name}: pip install 'edgeq[tvm]'") from error
        cores = with_cores(target)
        log = _open(folder)
        with cores:
            tasks = [t for t in ms.relax_integration.extract_tasks(module, cores) if _is_float(t.dispatched[0])]
        known = _known(log, [t.dispatched[0] for t in tasks])
    progress("tune float kernels", 0, len(tasks))
    for index, task in enumerate(tasks):
        _tune(
            ms, task, cores, log, trials - known[index], lambda i=index: progress("tune float kernels", i, len(tasks))
        )
        progress("tune float kernels", index + 1, len(tasks))


def apply(module: Any, target: Any, folder: Path) -> Any:
    """`module` with the best schedule that the log in `folder` has for each of its float kernels; no log, no change.

    Raises:
        EdgeqError: the log is damaged.
    """
    from tvm.relax import transform

    if not all((folder / name).is_file() for name in FILES):
        return module
    with with_cores(target), _open(folder):
        return transform.MetaScheduleApplyDatabase()(module)


def is_tuned(function: Any) -> bool:
    """Whether a kernel has its schedule from the log."""
    return bool(function.attrs and "tirx.is_scheduled" in function.attrs)


def with_cores(target: Any) -> Any:
    """`target` as meta-schedule wants it, with this host's number of cores."""
    import tvm

    return tvm.target.Target({**dict(target.export()), "num-cores": os.cpu_count() or 1})


def _tune(ms: Any, task: Any, target: Any, log: Any, wanted: int, tell: Any) -> None:
    """Draw and time `wanted` candidates for one kernel."""
    if wanted <= 0:
        return
    with quiet():
        workload = log.commit_workload(task.dispatched[0])
        context = ms.TuneContext(
            task.dispatched[0],
            target=target,
            space_generator="post-order-apply",
            search_strategy="replay-trace",
            task_name=task.task_name,
            rand_state=len(log) + 1,  # another run draws others
            num_threads=1,
        )
        context.pre_tuning(wanted, AT_ONCE, context.generate_design_space())
    while True:
        with quiet():
            candidates = context.generate_measure_candidates()
            if candidates is None:
                break
            results = []
            for candidate in candidates:
                seconds = _seconds(ms, candidate, target)
                results.append(ms.runner.RunnerResult(seconds, None if seconds else "did not run"))
                log.commit_tuning_record(
                    ms.database.TuningRecord(
                        candidate.sch.trace, workload, seconds or [FAILED_S], target, candidate.args_info
                    )
                )
            context.notify_runner_results(candidates, results)
        tell()
    with quiet():
        context.post_tuning()


def _seconds(ms: Any, candidate: Any, target: Any) -> list[float] | None:
    """Three times of one candidate; None where TVM cannot build it."""
    import tvm

    generator = np.random.default_rng(0)
    try:
        built = ms.builder.local_builder.default_build(candidate.sch.mod, target, None)
    except RuntimeError:
        return None
    given = [
        tvm.runtime.tensor(generator.random([int(n) for n in a.shape]).astype(str(a.dtype)))
        for a in candidate.args_info
    ]
    timer = built.time_evaluator("main", tvm.cpu(), number=1, repeat=3, min_repeat_ms=LEAST_MS)
    return [float(s) for s in timer(*given).results]


def _known(log: Any, modules: list[Any]) -> list[int]:
    """How many candidates of each module the log has."""
    return [len(log.get_top_k(log.commit_workload(m), MANY)) if log.has_workload(m) else 0 for m in modules]


def _open(folder: Path) -> Any:
    from tvm.s_tir import meta_schedule as ms

    folder.mkdir(parents=True, exist_ok=True)
    try:
        return ms.database.JSONDatabase(*(str(folder / name) for name in FILES), module_equality="structural")
    except (RuntimeError, ValueError) as error:
        raise EdgeqError(f"{folder}: the tuning log is damaged; remove the folder and tune again") from error


def _is_float(module: Any) -> bool:
    return not any("edgeq.kind" in (f.attrs or {}) for f in module.functions.values())


def _meta_schedule() -> Any:
    """tvm.s_tir.meta_schedule with the intrinsics that it loads at its first use."""
    with _shallow_stacks():
        import tvm.s_tir.tensor_intrin  # noqa: F401 # what meta-schedule imports itself, but slowly
    from tvm.s_tir import meta_schedule

    return meta_schedule


@contextmanager
def _shallow_stacks() -> Iterator[None]:
    """TVM's parser asks for the source of every caller at each of some hundred kernels and reads none of it: 20 s."""
    whole = inspect.stack
    inspect.stack = lambda context=0: whole(0)  # the same without sources
    try:
        yield
    finally:
        inspect.stack = whole
