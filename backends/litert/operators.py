"""Integer operators of a QDQ program as LiteRT operators: geometry, layout, padding and activation of each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod
from typing import Any

import torch

from edgeq.backends.litert.flatbuffer import ModelWriter
from edgeq.backends.litert.moves import Moves
from edgeq.backends.litert.parts import Value, same_windows, unsupported
from edgeq.graph.integer import IntegerOp
from edgeq.graph.ops import ConvAttrs, clip_bounds, node_arg, value
from edgeq.spec import QParams

FIXED_OUTPUT = {"softmax": (1 / 256, -128), "sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}
AFFINE_BINARY = {"add": "ADD", "sub": "SUB", "mul": "MUL"}


class Emitter(Moves):
    """Appends the operators of one program to `writer`, carrying each value in whatever layout it was computed in."""

    def __init__(self, writer: ModelWriter) -> None:
        super().__init__(writer)
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

    def emit(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        """Append `op`; its output tensor carries op.name.

        Raises:
            EdgeqError: the geometry has no LiteRT operator.
        """
        return self.kinds[op.kind](op, inputs)

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
            raise unsupported(op, "a transposed convolution with groups or dilation has no LiteRT kernel")
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
            raise unsupported(op, "a matrix product with a vector has no LiteRT kernel")
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
                raise unsupported(op, "average pooling with divisor_override has no LiteRT kernel")
            if any(
                (o - 1) * s + k > i + 2 * p
                for o, s, k, i, p in zip(shape[2:], strides, kernel, x.shape[2:], pads, strict=True)
            ):
                raise unsupported(op, "average pooling with ceil_mode has no LiteRT kernel")
            if counted:
                x, padding = self._padded(op, x, kernel, strides, pads, (1, 1), shape[2:], same=pads == (0, 0))
            elif same_windows(x.shape[2:], shape[2:], kernel, strides, pads, (1, 1)):
                padding = self.writer.schema.Padding.SAME
            else:
                raise unsupported(op, "average pooling that leaves this padding uncounted has no LiteRT kernel")
        else:
            if _pair(node_arg(node, 4, 1)) != (1, 1):
                raise unsupported(op, "max pooling with dilation has no LiteRT kernel")
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


def _fixed(op: IntegerOp) -> QParams:
    scale, zero_point = FIXED_OUTPUT[op.kind]
    return QParams((scale,), (zero_point,))


def _pair(raw: Any) -> tuple[int, int]:
    items = [int(i) for i in raw] if isinstance(raw, (list, tuple)) else [int(raw)]
    return (items[0], items[-1])
