"""Where floats become integers and integers floats, as TIR; the order of a value's axes in memory changes with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeq.backends.tvm.moves import Shape, each, lying, offset, shifted
from edgeq.backends.tvm.schedule import Machine
from edgeq.backends.tvm.tir import flat, prim_func
from edgeq.spec import QParams


def quantize(shape: Shape, qparams: QParams, machine: Machine) -> Any:
    """PrimFunc float32 [torch layout] → int8 [memory layout]: round half even of x·float32(1/scale), as torch does."""
    inverse = float(np.float32(1.0 / qparams.step))
    zero_point = qparams.zero

    def body(T: Any, buffers: list[Any]) -> None:
        x, out = (flat(T, b) for b in buffers)

        def element(index: list[Any]) -> None:
            scaled = x[_row_major(index, shape)] * T.float32(inverse)
            low, high = T.float32(qparams.qmin - zero_point), T.float32(qparams.qmax - zero_point)
            integer = machine.rounded(T, T.min(T.max(scaled, low), high), 1) + zero_point
            T.buffer_store(out, T.cast(integer, "int8"), [offset(index, shape)])

        each(T, shape, element)

    return prim_func("quantize", [("x", shape, "float32"), ("out", lying(shape), "int8")], body)


def dequantize(shape: Shape, qparams: QParams) -> Any:
    """PrimFunc int8 [memory layout] → float32 [torch layout]: (q − zero point)·scale."""

    def body(T: Any, buffers: list[Any]) -> None:
        x, out = (flat(T, b) for b in buffers)

        def element(index: list[Any]) -> None:
            real = T.cast(shifted(T, x[offset(index, shape)], qparams, 1), "float32") * T.float32(qparams.step)
            T.buffer_store(out, real, [_row_major(index, shape)])

        each(T, shape, element)

    return prim_func("dequantize", [("x", lying(shape), "int8"), ("out", shape, "float32")], body)


def _row_major(index: Sequence[Any], shape: Shape) -> Any:
    place: Any = 0
    for i, n in zip(index, shape, strict=True):
        place = place * n + i
    return place
