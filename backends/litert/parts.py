"""What LiteRT operators are written with: values in a layout, constants, padding, clips, scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.backends.litert.flatbuffer import ModelWriter
from edgeq.graph.integer import IntegerOp
from edgeq.graph.kinds import role_of
from edgeq.spec import EdgeqError, QParams

Perm = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """An int8 tensor of the file: torch's axes stand in order `perm`; `shape` is torch's."""

    index: int
    shape: tuple[int, ...]
    perm: Perm
    qparams: QParams


class Parts:
    """Appends to `writer` what stands around and between operators."""

    def __init__(self, writer: ModelWriter) -> None:
        self.writer = writer
        self._copies: dict[tuple[int, Perm, tuple[int, ...], Perm], Value] = {}

    def arranged(self, source: Value, perm: Perm) -> Value:
        """`source` in axis order `perm`: as it is, reshaped where only axes of size 1 move, else transposed."""
        if source.perm == perm:
            return source
        key = (source.index, source.perm, source.shape, perm)  # of one tensor there may be several turned readings
        if key not in self._copies:
            moved = [a for a in source.perm if source.shape[a] != 1] != [a for a in perm if source.shape[a] != 1]
            name = f"{self._name(source.index)}_{'transposed' if moved else 'reshaped'}_{''.join(map(str, perm))}"
            out = self._value(name, source.shape, perm, source.qparams)
            if moved:
                order = [source.perm.index(a) for a in perm]
                self._operator("TRANSPOSE", [source.index, self._ints(order)], out, table="TransposeOptions")
            else:
                self._reshape_to(source.index, out)
            self._copies[key] = out
        return self._copies[key]

    def plain(self, source: Value) -> Value:
        """`source` in torch's own axis order."""
        return self.arranged(source, tuple(range(len(source.shape))))

    def requantized(self, x: Value, wanted: QParams, name: str) -> Value:
        """`x` with other numbers, by a QUANTIZE operator where they differ."""
        if numbers(x.qparams) == numbers(wanted):
            return x
        out = self._value(name, x.shape, x.perm, wanted)
        self._operator("QUANTIZE", [x.index], out, table="QuantizeOptions")
        return out

    def _padded(
        self,
        op: IntegerOp,
        x: Value,
        kernel: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int],
        out: Sequence[int],
        *,
        fill: int | None = None,
        same: bool = True,
    ) -> tuple[Value, int]:
        """`x` and the padding mode that give torch's windows; a PAD operator stands in where no mode does."""
        modes = self.writer.schema.Padding
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        needed = [(o - 1) * s + e for o, s, e in zip(out, strides, extents, strict=True)]
        if all(p == 0 for p in pads) and all(n <= i for n, i in zip(needed, x.shape[2:], strict=True)):
            return x, modes.VALID
        # where windows leave out the end of an axis, XNNPACK's SAME is wrong in releases before 2.3 (seen in 2.1.6)
        reach = all(n >= i for n, i in zip(needed, x.shape[2:], strict=True))
        if same and reach and same_windows(x.shape[2:], out, kernel, strides, pads, dilations):
            return x, modes.SAME
        # what the last window does not reach stays unpadded
        sides = [(0, 0), (0, 0)] + [(p, max(n - i - p, 0)) for p, n, i in zip(pads, needed, x.shape[2:], strict=True)]
        shape = tuple(i + a + b for i, (a, b) in zip(x.shape, sides, strict=True))
        padded = self._value(f"{op.name}_padded", shape, x.perm, x.qparams)
        self._pad_to(x, padded, sides, fill)
        return padded, modes.VALID

    def _pad_to(self, x: Value, out: Value, sides: Sequence[tuple[int, int]], fill: int | None) -> None:
        """PAD with the zero point, PADV2 with the integer `fill`."""
        amounts = self.writer.constant("paddings", np.asarray([sides[a] for a in x.perm], np.int32))
        if fill is None:
            self._operator("PAD", [x.index, amounts], out, table="PadOptions")
            return
        scale, zero_point = numbers(x.qparams)
        constant = self.writer.tensor("fill", (), "int8", scale, zero_point, data=np.asarray(fill, np.int8))
        self._operator("PADV2", [x.index, amounts, constant], out, table="PadV2Options")

    def _cut(self, x: Value, out: Value, begin: Sequence[int], end: Sequence[int], steps: Sequence[int]) -> None:
        ranges = [self._ints([bounds[a] for a in x.perm]) for bounds in (begin, end, steps)]
        self._operator("STRIDED_SLICE", [x.index, *ranges], out, table="StridedSliceOptions")

    def _reshape_to(self, source: int, out: Value) -> None:
        shape = [out.shape[a] for a in out.perm]
        new = np.asarray(shape, np.int32)
        self._operator("RESHAPE", [source, self._ints(shape)], out, table="ReshapeOptions", newShape=new)

    def _weight(self, op: IntegerOp, stored: torch.Tensor, axis: int) -> int:
        assert op.weight_scale is not None
        data = np.ascontiguousarray(stored.numpy())
        return self.writer.tensor(
            f"{op.name}_weight", data.shape, "int8", op.weight_scale.numpy(), axis=axis, data=data
        )

    def _bias(self, op: IntegerOp) -> int:
        assert op.weight_scale is not None
        scale = bias_scale(op)
        data = np.zeros(len(scale), np.int32) if op.bias is None else op.bias.numpy().astype(np.int32)
        return self.writer.tensor(f"{op.name}_bias", data.shape, "int32", scale, data=data)

    def _fused(self, op: IntegerOp) -> tuple[int, tuple[int, int] | None]:
        """The activation whose integer bounds LiteRT computes as ours, else none and the bounds to clip to."""
        if (op.low, op.high) == (-128, 127) and role_of(op.kind) != "clip":
            return 0, None
        for code, low, high in self._activations():
            if fused_bounds(op.output_qparams, low, high) == (op.low, op.high):
                return code, None
        return 0, (op.low, op.high)

    def _activations(self) -> tuple[tuple[int, float, float | None], ...]:
        codes = self.writer.schema.ActivationFunctionType
        return ((codes.RELU, 0.0, None), (codes.RELU6, 0.0, 6.0), (codes.RELU_N1_TO_1, -1.0, 1.0))

    def _bounds(self, op: IntegerOp) -> tuple[int, int] | None:
        return None if (op.low, op.high) == (-128, 127) else (op.low, op.high)

    def _activated(
        self, code: str, inputs: Sequence[int], out: Value, fused: int, rest: tuple[int, int] | None, **options: Any
    ) -> None:
        """An operator with its activation, fused or as a clip behind it."""
        if fused:
            options["fusedActivationFunction"] = fused
        self._clipped(out, rest, lambda target: self._operator(code, inputs, target, **options))

    def _clipped(self, out: Value, bounds: tuple[int, int] | None, write: Callable[[Value], None]) -> None:
        if bounds is None:
            write(out)
            return
        raw = self._value(f"{self._name(out.index)}_raw", out.shape, out.perm, out.qparams)
        write(raw)
        self._clip(raw.index, out, *bounds)

    def _clip(self, source: int, out: Value, low: int, high: int) -> None:
        scale, zero_point = numbers(out.qparams)
        steps = [("MAXIMUM", low)] * (low > -128) + [("MINIMUM", high)] * (high < 127)
        for i, (code, bound) in enumerate(steps or [("MAXIMUM", low)]):
            last = i == len(steps or [0]) - 1
            target = out if last else self._value(f"{self._name(out.index)}_low", out.shape, out.perm, out.qparams)
            data = np.full((1,) * max(len(out.shape), 1), bound, np.int8)
            constant = self.writer.tensor("bound", data.shape, "int8", scale, zero_point, data=data)
            self._operator(code, [source, constant], target, table="MaximumMinimumOptions")
            source = target.index

    def _rescaled(self, op: IntegerOp, out: Value, write: Callable[[Value], None]) -> None:
        """Write an operator that keeps (or fixes) its numbers, then clip, and requantise where the program's differ."""
        bounds = self._bounds(op)
        tensor = self.writer.tensors[out.index]
        if numbers(out.qparams) == numbers(op.output_qparams):
            self._clipped(out, bounds, write)
            return
        raw = self._value(f"{op.name}_own_scale", out.shape, out.perm, out.qparams)
        write(raw)
        scale, zero_point = numbers(op.output_qparams)
        tensor.quantization.scale = np.asarray([scale], np.float32)
        tensor.quantization.zeroPoint = np.asarray([zero_point], np.int64)
        target = Value(out.index, out.shape, out.perm, op.output_qparams)
        self._clipped(target, bounds, lambda t: self._operator("QUANTIZE", [raw.index], t, table="QuantizeOptions"))

    def _value(self, name: str, shape: Sequence[int], perm: Perm, qparams: QParams) -> Value:
        scale, zero_point = numbers(qparams)
        index = self.writer.tensor(name, [shape[a] for a in perm], "int8", scale, zero_point)
        return Value(index, tuple(shape), perm, qparams)

    def _operator(self, code: str, inputs: Sequence[int], out: Value, **options: Any) -> None:
        self.writer.operator(code, inputs, [out.index], **options)

    def _ints(self, numbers: Sequence[int]) -> int:
        return self.writer.constant("ints", np.asarray(list(numbers), np.int32))

    def _name(self, index: int) -> str:
        return str(self.writer.tensors[index].name.decode())


def bias_scale(op: IntegerOp) -> NDArray[np.float32]:
    """input scale × weight scale in float32: what LiteRT's converter stores on the bias."""
    assert op.weight_scale is not None
    return np.float32(op.input_qparams[0].step) * op.weight_scale.numpy()


def fused_bounds(qparams: QParams, low: float, high: float | None) -> tuple[int, int]:
    """Clip bounds by float32 division, half away from zero (CalculateActivationRangeQuantized, kernel_util.cc)."""
    scale, zero_point = numbers(qparams)

    def quantized(bound: float) -> int:
        ratio = float(np.float32(bound) / np.float32(scale))
        return zero_point + int(np.copysign(np.floor(abs(ratio) + 0.5), ratio))

    return max(-128, quantized(low)), 127 if high is None else min(127, quantized(high))


def numbers(qparams: QParams) -> tuple[float, int]:
    """Scale, as float32 has it, and zero point of a tensor."""
    return float(np.float32(qparams.step)), qparams.zero


def same_windows(
    size: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> bool:
    """Whether padding SAME means torch's windows: as many outputs, and as much in front (kernels/padding.h)."""
    return all(
        o == ceil(i / s) and max((o - 1) * s + (k - 1) * d + 1 - i, 0) // 2 == p
        for i, o, k, s, p, d in zip(size, out, kernel, strides, pads, dilations, strict=True)
    )


def unsupported(op: IntegerOp, reason: str) -> EdgeqError:
    """What is raised where an operator has no LiteRT form."""
    return EdgeqError(f"{op.layer} ({op.kind}): {reason}; set its layer to fp32 in the plan")
