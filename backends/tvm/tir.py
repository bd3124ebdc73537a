"""Small words for writing TIR kernels: functions, flat views, vector loops, requantisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edgeq.graph.integer import IntegerOp


def prim_func(
    kind: str, params: Sequence[tuple[str, tuple[int, ...], str]], body: Callable[[Any, list[Any]], None]
) -> Any:
    """A PrimFunc with one buffer for each (name, shape, dtype); the last is the output, and none overlap.

    `body` gets TVM's TIR builder and the buffers.
    """
    from tvm import tirx
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as builder, T.prim_func(is_private=True):
        T.func_name(kind)
        T.func_attr({"tirx.noalias": True, "op_pattern": 8})  # 8: opaque, not to be fused with anything
        buffers = [T.arg(name, T.buffer(shape, dtype)) for name, shape, dtype in params]
        body(T, buffers)
    function = builder.get()
    root = tirx.SBlock([], [], [], "root", function.body)  # Relax's passes look for a block at the root
    return function.with_body(tirx.SBlockRealize([], tirx.const(True), root))


def flat(T: Any, buffer: Any) -> Any:
    """The same memory as one axis."""
    size = int(np.prod([int(n) for n in buffer.shape], dtype=np.int64))
    return T.decl_buffer((size,), buffer.dtype, data=buffer.data)


def runs(T: Any, count: int, lanes: int) -> Iterator[tuple[Any, int]]:
    """Loops over `count` elements: (start, lanes) for whole vectors, then (start, 1) for the rest."""
    if count >= lanes:
        with T.serial(0, count // lanes) as i:
            yield i * lanes, lanes
    if count % lanes:
        with T.serial(0, count % lanes) as i:
            yield count // lanes * lanes + i, 1


def store_all(T: Any, buffer: Any, start: Any, value: Any, lanes: int) -> None:
    """Store a vector (or one scalar into every lane) at start."""
    if lanes == 1:
        T.buffer_store(buffer, value, [start])
        return
    wide = value if "x" in str(value.ty.dtype) else T.broadcast(value, lanes)
    T.buffer_store(buffer, wide, [T.ramp(start, 1, lanes)])


def widened(T: Any, stored: Any, shift: int, lanes: int) -> Any:
    """int8 value + shift as int16, which holds it."""
    wide = T.cast(stored, f"int16x{lanes}" if lanes > 1 else "int16")
    return wide + T.cast(T.int32(shift), "int16")


def requantize(T: Any, total: Any, ratio: Any, op: IntegerOp, lanes: int) -> Any:
    """int32 sums → int8: float32(total)·ratio, clipped, rounded half to even, plus zero point.

    Bounds are integers, so that clipping first equals clipping last, and the conversion back to int32 cannot overflow.
    There is no float addition, hence nothing a compiler could contract into a fused multiply-add.
    """
    zero_point = op.output_qparams.zero_point[0]
    shape = f"x{lanes}" if lanes > 1 else ""

    def spread(value: Any) -> Any:
        return T.broadcast(value, lanes) if lanes > 1 else value

    scaled = T.cast(total, f"float32{shape}") * ratio
    clipped = T.min(T.max(scaled, spread(T.float32(op.low - zero_point))), spread(T.float32(op.high - zero_point)))
    integer = T.cast(T.nearbyint(clipped), f"int32{shape}") + spread(T.int32(zero_point))
    return T.cast(integer, f"int8{shape}")
