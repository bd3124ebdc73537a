"""Integer operators of a QDQ program as LiteRT operators: geometry, layout, padding and activation of each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq.backends.litert.flatbuffer import ModelWriter
from edgeq.graph.integer import IntegerOp
from edgeq.graph.ops import ACTIVATIONS, ConvAttrs, clip_bounds, node_arg, value
from edgeq.spec import EdgeqError, QParams

Perm = tuple[int, ...]

FIXED_OUTPUT = {"softmax": (1 / 256, -128), "sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}
AFFINE_BINARY = {"add": "ADD", "sub": "SUB", "mul": "MUL"}
STRIDED_SLICE_LIMIT = 5  # axes strided_slice.cc takes


@dataclass(frozen=True, slots=True)
class Value:
    """An int8 tensor of the file: torch's axes stand in order `perm`; `shape` is torch's."""

    index: int
    shape: tuple[int, ...]
    perm: Perm
    qparams: QParams


class Emitter:
    """Appends the operators of one program to `writer`, carrying each value in whatever layout it was computed in."""

    def __init__(self, writer: ModelWriter) -> None:
        self.writer = writer
        self.kinds: dict[str, Callable[[IntegerOp, Sequence[Value]], Value]] = {
            "conv1d": self._conv,
            "conv2d": self._conv,
            "depthwise_conv2d": self._conv,
            "conv_transpose2d": self._conv_transpose,
            "linear": self._linear,
            "add": self._binary,
            "sub": self._binary,
            "mul": self._binary,
            "cat": self._cat,
            "max_pool2d": self._pool,
            "avg_pool2d": self._pool,
            "mean": self._mean,
            "relu": self._activation,
            "relu6": self._activation,
            "clamp": self._activation,
            "reshape": self._reshape,
            "permute": self._permute,
            "slice": self._slice,
            "pad": self._pad,
            "upsample_nearest": self._upsample,
            "softmax": self._softmax,
            "sigmoid": self._table,
            "tanh": self._table,
            "matmul": self._matmul,
            "requantize": self._requantize,
        }
        self._copies: dict[tuple[int, Perm, tuple[int, ...], Perm], Value] = {}
        self._tables: dict[int, int] = {}  # index tensor → the same, flattened

    def emit(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        """Append `op`; its output tensor carries op.name.

        Raises:
            EdgeqError: the geometry has no LiteRT operator.
        """
        return self.kinds[op.kind](op, inputs)

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

    # ------------------------------------------------------------ weighted operators

    def _conv(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        attrs = op.attrs
        assert isinstance(attrs, ConvAttrs) and op.weight is not None
        out_shape = tuple(value(op.node).shape)
        weight = op.weight
        pads, strides, dilations = attrs.padding, attrs.stride, attrs.dilation
        if op.kind == "conv1d":  # one row of a picture
            source = self.arranged(inputs[0], (0, 2, 1))
            n, c, length = source.shape
            image = Value(source.index, (n, c, 1, length), (0, 2, 3, 1), source.qparams)
            row = self._value(f"{op.name}_row", image.shape, image.perm, image.qparams)
            self._reshape_to(source.index, row)
            x, weight = row, weight.unsqueeze(2)
            pads, strides, dilations = (0, *pads), (1, *strides), (1, *dilations)
            shape4: tuple[int, ...] = (out_shape[0], out_shape[1], 1, out_shape[2])
        else:
            x, shape4 = self.arranged(inputs[0], (0, 2, 3, 1)), out_shape
        x, padding = self._padded(op, x, weight.shape[2:], strides, pads, dilations, shape4[2:])
        depthwise = attrs.groups == x.shape[1] and weight.shape[1] == 1
        if depthwise:
            stored, axis = weight.permute(1, 2, 3, 0), 3
        else:
            stored, axis = weight.permute(0, 2, 3, 1), 0
        fused, rest = self._fused(op)
        final = self._value(op.name, out_shape, (0, 2, 1) if op.kind == "conv1d" else (0, 2, 3, 1), op.output_qparams)
        out = final if op.kind != "conv1d" else self._value(f"{op.name}_image", shape4, (0, 2, 3, 1), op.output_qparams)
        options: dict[str, Any] = {
            "padding": padding,
            "strideH": strides[0],
            "strideW": strides[1],
            "dilationHFactor": dilations[0],
            "dilationWFactor": dilations[1],
        }
        if depthwise:
            options |= {"depthMultiplier": weight.shape[0] // x.shape[1]}
        parameters = [self._weight(op, stored, axis), self._bias(op)]
        self._activated(
            "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D",
            [x.index, *parameters],
            out,
            fused,
            rest,
            table="DepthwiseConv2DOptions" if depthwise else "Conv2DOptions",
            **options,
        )
        if final is not out:
            self._reshape_to(out.index, final)
        return final

    def _conv_transpose(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        attrs = op.attrs
        assert isinstance(attrs, ConvAttrs) and op.weight is not None and attrs.output_padding is not None
        if attrs.groups != 1 or any(d != 1 for d in attrs.dilation):
            raise _unsupported(op, "a transposed convolution with groups or dilation has no LiteRT kernel")
        x = self.arranged(inputs[0], (0, 2, 3, 1))
        out_shape = tuple(value(op.node).shape)
        kernel, stride, pads = op.weight.shape[2:], attrs.stride, attrs.padding
        sizes = list(zip(x.shape[2:], out_shape[2:], kernel, stride, pads, attrs.output_padding, strict=True))
        padding = self.writer.schema.Padding
        same = all(ceil(o / s) == i and max((i - 1) * s + k - o, 0) // 2 == p for i, o, k, s, p, _ in sizes)
        mode = padding.SAME if same else padding.VALID
        # without SAME: compute the whole output, then cut the padding off
        full = [o if same or p == 0 else (i - 1) * s + k + max(extra - p, 0) for i, o, k, s, p, extra in sizes]
        whole = (*out_shape[:2], *full)
        cropped = full != list(out_shape[2:])
        fused, rest = self._fused(op)
        out = self._value(op.name + "_whole" * cropped, whole, (0, 2, 3, 1), op.output_qparams)
        stored = self._weight(op, op.weight.permute(1, 2, 3, 0), 0)
        extent = self._ints([whole[a] for a in out.perm])
        self._activated(
            "TRANSPOSE_CONV",
            [extent, stored, x.index, self._bias(op)],
            out,
            fused,
            rest,
            table="TransposeConvOptions",
            padding=mode,
            strideH=stride[0],
            strideW=stride[1],
        )
        if not cropped:
            return out
        final = self._value(op.name, out_shape, out.perm, op.output_qparams)
        begin = [0, 0, *(0 if p == 0 else p for p in pads)]
        self._cut(out, final, begin, [b + s for b, s in zip(begin, out_shape, strict=True)], [1] * 4)
        return final

    def _linear(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        assert op.weight is not None
        x = self.plain(inputs[0])
        fused, rest = self._fused(op)
        out = self._value(op.name, tuple(value(op.node).shape), tuple(range(len(x.shape))), op.output_qparams)
        parameters = [self._weight(op, op.weight, 0), self._bias(op)]
        options = {"table": "FullyConnectedOptions", "keepNumDims": len(x.shape) != 2}
        self._activated("FULLY_CONNECTED", [x.index, *parameters], out, fused, rest, **options)
        return out

    # ------------------------------------------------------------ arithmetic

    def _binary(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        a, b = inputs
        shape = tuple(value(op.node).shape)
        if len(a.shape) == len(b.shape):
            wide = a if prod(a.shape) >= prod(b.shape) else b
            a, b, perm = self.arranged(a, wide.perm), self.arranged(b, wide.perm), wide.perm
        else:
            a, b, perm = self.plain(a), self.plain(b), tuple(range(len(shape)))
        fused, rest = self._fused(op)
        out = self._value(op.name, shape, perm, op.output_qparams)
        table = {"ADD": "AddOptions", "SUB": "SubOptions", "MUL": "MulOptions"}[AFFINE_BINARY[op.kind]]
        self._activated(AFFINE_BINARY[op.kind], [a.index, b.index], out, fused, rest, table=table)
        return out

    def _matmul(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        a, b = (self.plain(v) for v in inputs)
        if len(a.shape) < 2 or len(b.shape) < 2:
            raise _unsupported(op, "a matrix product with a vector has no LiteRT kernel")
        shape = tuple(value(op.node).shape)
        out = self._value(op.name, shape, tuple(range(len(shape))), op.output_qparams)
        self._activated("BATCH_MATMUL", [a.index, b.index], out, 0, self._bounds(op), table="BatchMatMulOptions")
        return out

    def _mean(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        x = inputs[0]
        rank = len(x.shape)
        if op.node.target is torch.ops.aten.adaptive_avg_pool2d.default:
            axes, keep = {rank - 2, rank - 1}, True
        else:
            raw = node_arg(op.node, 1, None)
            axes = {int(d) % rank for d in raw} if raw else set(range(rank))
            keep = bool(node_arg(op.node, 2, False))
        if rank == 4 and axes == {2, 3} and keep:  # LiteRT has a kernel for just this layout, which rounds otherwise
            x = self.arranged(x, (0, 2, 3, 1))
        left = sorted(a for a in range(rank) if a not in axes)
        perm = x.perm if keep else tuple(left.index(a) for a in x.perm if a in left)
        out = self._value(op.name, tuple(value(op.node).shape), perm, op.output_qparams)
        where = self._ints(sorted(x.perm.index(a) for a in axes))
        self._activated("MEAN", [x.index, where], out, 0, self._bounds(op), table="ReducerOptions", keepDims=keep)
        return out

    def _pool(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        node, x = op.node, self.arranged(inputs[0], (0, 2, 3, 1))
        kernel = _pair(node.args[1])
        strides = _pair(node_arg(node, 2, None) or kernel)
        pads = _pair(node_arg(node, 3, 0))
        shape = tuple(value(node).shape)
        average = op.kind == "avg_pool2d"
        if average:
            counted = bool(node_arg(node, 5, True)) or pads == (0, 0)
            if node_arg(node, 6, None) is not None:
                raise _unsupported(op, "average pooling with divisor_override has no LiteRT kernel")
            if any(
                (o - 1) * s + k > i + 2 * p
                for o, s, k, i, p in zip(shape[2:], strides, kernel, x.shape[2:], pads, strict=True)
            ):
                raise _unsupported(op, "average pooling with ceil_mode has no LiteRT kernel")
            if counted:
                x, padding = self._padded(op, x, kernel, strides, pads, (1, 1), shape[2:], same=pads == (0, 0))
            elif _same(x.shape[2:], shape[2:], kernel, strides, pads, (1, 1)):
                padding = self.writer.schema.Padding.SAME
            else:
                raise _unsupported(op, "average pooling that leaves this padding uncounted has no LiteRT kernel")
        else:
            if _pair(node_arg(node, 4, 1)) != (1, 1):
                raise _unsupported(op, "max pooling with dilation has no LiteRT kernel")
            x, padding = self._padded(op, x, kernel, strides, pads, (1, 1), shape[2:], fill=-128)
        out = self._value(op.name, shape, x.perm, x.qparams)
        self._rescaled(
            op,
            out,
            lambda target: self._operator(
                "AVERAGE_POOL_2D" if average else "MAX_POOL_2D",
                [x.index],
                target,
                table="Pool2DOptions",
                padding=padding,
                strideH=strides[0],
                strideW=strides[1],
                filterHeight=kernel[0],
                filterWidth=kernel[1],
            ),
        )
        return Value(out.index, shape, out.perm, op.output_qparams)

    def _activation(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        x = inputs[0]
        fused, _ = self._fused(op)
        names = {
            self.writer.schema.ActivationFunctionType.RELU: "RELU",
            self.writer.schema.ActivationFunctionType.RELU6: "RELU6",
        }
        out = self._value(op.name, x.shape, x.perm, op.output_qparams)
        if fused in names and clip_bounds(op.node, op.kind) in ((0.0, None), (0.0, 6.0)):
            self._operator(names[fused], [x.index], out)
            return out
        if x.qparams != op.output_qparams:
            self._clipped(
                out,
                self._bounds(op),
                lambda target: self._operator("QUANTIZE", [x.index], target, table="QuantizeOptions"),
            )
        else:
            self._clip(x.index, out, op.low, op.high)
        return out

    def _softmax(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        x = inputs[0]
        axis = int(op.node.args[1]) % len(x.shape)  # type: ignore[arg-type] # an int
        if x.perm[-1] != axis:
            x = self.arranged(x, (*(a for a in range(len(x.shape)) if a != axis), axis))
        out = self._value(op.name, x.shape, x.perm, _fixed(op))
        self._rescaled(
            op, out, lambda target: self._operator("SOFTMAX", [x.index], target, table="SoftmaxOptions", beta=1.0)
        )
        return Value(out.index, x.shape, out.perm, op.output_qparams)

    def _table(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        x = inputs[0]
        out = self._value(op.name, x.shape, x.perm, _fixed(op))
        self._rescaled(
            op, out, lambda target: self._operator({"sigmoid": "LOGISTIC", "tanh": "TANH"}[op.kind], [x.index], target)
        )
        return Value(out.index, x.shape, out.perm, op.output_qparams)

    def _requantize(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        x = inputs[0]
        out = self._value(op.name, x.shape, x.perm, op.output_qparams)
        self._operator("QUANTIZE", [x.index], out, table="QuantizeOptions")
        return out

    # ------------------------------------------------------------ movement

    def _cat(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        shape = tuple(value(op.node).shape)
        perm = max(inputs, key=lambda v: prod(v.shape)).perm
        parts = [
            self.requantized(self.arranged(v, perm), op.output_qparams, f"{op.name}_part{i}")
            for i, v in enumerate(inputs)
        ]
        axis = int(node_arg(op.node, 1, 0)) % len(shape)
        out = self._value(op.name, shape, perm, op.output_qparams)
        indices = [p.index for p in parts]
        self._operator("CONCATENATION", indices, out, table="ConcatenationOptions", axis=perm.index(axis))
        return out

    def _reshape(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        x, shape = inputs[0], tuple(value(op.node).shape)
        if [a for a in x.perm if x.shape[a] != 1] != [a for a in range(len(x.shape)) if x.shape[a] != 1]:
            x = self.plain(x)  # else the memory is in torch's order already
        out = self._value(op.name, shape, tuple(range(len(shape))), x.qparams)
        self._rescaled(op, out, lambda target: self._reshape_to(x.index, target))
        return Value(out.index, shape, out.perm, op.output_qparams)

    def _permute(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        """No operator at all: the axes get new names."""
        x, rank = inputs[0], len(inputs[0].shape)
        if op.node.target is torch.ops.aten.transpose.int:
            a, b = (int(d) % rank for d in op.node.args[1:3])  # type: ignore[arg-type] # ints
            order = list(range(rank))
            order[a], order[b] = b, a
        else:
            order = [int(d) % rank for d in op.node.args[1]]  # type: ignore[union-attr,arg-type] # a list of ints
        x = self.requantized(x, op.output_qparams, op.name)
        return Value(
            x.index, tuple(x.shape[a] for a in order), tuple(order.index(a) for a in x.perm), op.output_qparams
        )

    def _slice(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        x, node = inputs[0], op.node
        if len(x.shape) > STRIDED_SLICE_LIMIT:
            raise _unsupported(op, f"LiteRT slices at most {STRIDED_SLICE_LIMIT} axes")
        axis = int(node_arg(node, 1, 0)) % len(x.shape)
        start, end, step = slice(node_arg(node, 2, None), node_arg(node, 3, None), node_arg(node, 4, 1)).indices(
            x.shape[axis]
        )
        begin, stop, steps = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
        begin[axis], stop[axis], steps[axis] = start, end, step
        out = self._value(op.name, tuple(value(node).shape), x.perm, x.qparams)
        self._rescaled(op, out, lambda target: self._cut(x, target, begin, stop, steps))
        return Value(out.index, out.shape, out.perm, op.output_qparams)

    def _pad(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        x = inputs[0]
        amounts = [int(a) for a in op.node.args[1]]  # type: ignore[union-attr,arg-type] # last axis first, two an axis
        if any(a < 0 for a in amounts):
            raise _unsupported(op, "padding by a negative amount has no LiteRT kernel: slice instead")
        sides = [(0, 0)] * len(x.shape)
        for i in range(len(amounts) // 2):
            sides[-1 - i] = (amounts[2 * i], amounts[2 * i + 1])
        out = self._value(op.name, tuple(value(op.node).shape), x.perm, x.qparams)
        self._rescaled(op, out, lambda target: self._pad_to(x, target, sides, None))
        return Value(out.index, out.shape, out.perm, op.output_qparams)

    def _upsample(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        x, shape = self.arranged(inputs[0], (0, 2, 3, 1)), tuple(value(op.node).shape)
        if any(o % i for o, i in zip(shape[2:], x.shape[2:], strict=True)):
            raise _unsupported(op, "nearest upsampling by a fraction picks other pixels in LiteRT: use whole factors")
        out = self._value(op.name, shape, x.perm, x.qparams)
        size = self._ints(shape[2:])
        # the same pixels with and without for whole factors; other readers (Arm's TOSA) round half a pixel away without
        options = {"table": "ResizeNearestNeighborOptions", "halfPixelCenters": True}
        self._rescaled(
            op, out, lambda target: self._operator("RESIZE_NEAREST_NEIGHBOR", [x.index, size], target, **options)
        )
        return Value(out.index, shape, out.perm, op.output_qparams)

    def gather(self, op: IntegerOp, source: Value, table: int) -> Value:
        """Append `op`, which picks rows of `source` by tensor `table` of the file: int32 or int64, any shape."""
        x, places = self.plain(source), self._flattened(table)
        shape = tuple(value(op.node).shape)
        out = self._value(op.name, shape, tuple(range(len(shape))), op.output_qparams)
        self._activated("GATHER", [x.index, places], out, 0, self._bounds(op), table="GatherOptions", axis=0)
        return out

    def _flattened(self, table: int) -> int:
        tensor = self.writer.tensors[table]
        if len(tensor.shape) == 1:
            return table
        if table not in self._tables:
            types = self.writer.schema.TensorType
            dtype = "int64" if tensor.type == types.INT64 else "int32"
            shape = [prod(int(n) for n in tensor.shape)]
            new = np.asarray(shape, np.int32)
            flat = self.writer.tensor(f"{self._name(table)}_flat", shape, dtype)
            self.writer.operator("RESHAPE", [table, self._ints(shape)], [flat], table="ReshapeOptions", newShape=new)
            self._tables[table] = flat
        return self._tables[table]

    def requantized(self, x: Value, wanted: QParams, name: str) -> Value:
        """`x` with other numbers, by a QUANTIZE operator where they differ."""
        if _numbers(x.qparams) == _numbers(wanted):
            return x
        out = self._value(name, x.shape, x.perm, wanted)
        self._operator("QUANTIZE", [x.index], out, table="QuantizeOptions")
        return out

    # ------------------------------------------------------------ parts

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
        if same and reach and _same(x.shape[2:], out, kernel, strides, pads, dilations):
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
        scale, zero_point = _numbers(x.qparams)
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
        if (op.low, op.high) == (-128, 127) and op.kind not in ACTIVATIONS:
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
        scale, zero_point = _numbers(out.qparams)
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
        if _numbers(out.qparams) == _numbers(op.output_qparams):
            self._clipped(out, bounds, write)
            return
        raw = self._value(f"{op.name}_own_scale", out.shape, out.perm, out.qparams)
        write(raw)
        scale, zero_point = _numbers(op.output_qparams)
        tensor.quantization.scale = np.asarray([scale], np.float32)
        tensor.quantization.zeroPoint = np.asarray([zero_point], np.int64)
        target = Value(out.index, out.shape, out.perm, op.output_qparams)
        self._clipped(target, bounds, lambda t: self._operator("QUANTIZE", [raw.index], t, table="QuantizeOptions"))

    def _value(self, name: str, shape: Sequence[int], perm: Perm, qparams: QParams) -> Value:
        scale, zero_point = _numbers(qparams)
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
    return np.float32(op.input_qparams[0].scale[0]) * op.weight_scale.numpy()


def fused_bounds(qparams: QParams, low: float, high: float | None) -> tuple[int, int]:
    """Clip bounds by float32 division, half away from zero (CalculateActivationRangeQuantized, kernel_util.cc)."""
    scale, zero_point = _numbers(qparams)

    def quantized(bound: float) -> int:
        ratio = float(np.float32(bound) / np.float32(scale))
        return zero_point + int(np.copysign(np.floor(abs(ratio) + 0.5), ratio))

    return max(-128, quantized(low)), 127 if high is None else min(127, quantized(high))


def _numbers(qparams: QParams) -> tuple[float, int]:
    return float(np.float32(qparams.scale[0])), qparams.zero_point[0]


def _fixed(op: IntegerOp) -> QParams:
    scale, zero_point = FIXED_OUTPUT[op.kind]
    return QParams((scale,), (zero_point,))


def _same(
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


def _pair(raw: Any) -> tuple[int, int]:
    items = [int(i) for i in raw] if isinstance(raw, (list, tuple)) else [int(raw)]
    return (items[0], items[-1])


def _unsupported(op: IntegerOp, reason: str) -> EdgeqError:
    return EdgeqError(f"{op.layer} ({op.kind}): {reason}; set its layer to fp32 in the plan")
