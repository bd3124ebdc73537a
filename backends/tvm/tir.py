"""Small words for writing TIR kernels: functions, flat views, vector loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


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
    """A loop over `count` elements as (start, lanes), at most `lanes` of them; the last vector overlaps the one before."""
    lanes = min(lanes, 1 << (count.bit_length() - 1)) if count else 0
    if count:
        with T.serial(0, -(-count // lanes)) as i:
            yield (i * lanes if count % lanes == 0 else T.Bind(T.min(i * lanes, count - lanes))), lanes


def tasks(T: Any, count: Any, worth: bool) -> Any:
    """A loop whose rounds may run on several threads, where that is worth a microsecond or two."""
    return T.parallel(0, count) if worth else T.serial(0, count)


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


def spread(T: Any, value: Any, lanes: int) -> Any:
    """A scalar in every lane."""
    return T.broadcast(value, lanes) if lanes > 1 else value
