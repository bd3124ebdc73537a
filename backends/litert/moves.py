"""Operators that move integers, and compute nothing: concatenation, shapes, slices, padding, upsampling, rows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch

from edgeq.backends.litert.flatbuffer import ModelWriter
from edgeq.backends.litert.parts import Parts, Value, unsupported
from edgeq.graph.integer import IntegerOp
from edgeq.graph.ops import node_arg, value

STRIDED_SLICE_LIMIT = 5  # axes strided_slice.cc takes


class Moves(Parts):
    """Appends them to `writer`."""

    def __init__(self, writer: ModelWriter) -> None:
        super().__init__(writer)
        self._tables: dict[int, int] = {}  # index tensor → the same, flattened

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
            raise unsupported(op, f"LiteRT slices at most {STRIDED_SLICE_LIMIT} axes")
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
            raise unsupported(op, "padding by a negative amount has no LiteRT kernel: slice instead")
        sides = [(0, 0)] * len(x.shape)
        for i in range(len(amounts) // 2):
            sides[-1 - i] = (amounts[2 * i], amounts[2 * i + 1])
        out = self._value(op.name, tuple(value(op.node).shape), x.perm, x.qparams)
        self._rescaled(op, out, lambda target: self._pad_to(x, target, sides, None))
        return Value(out.index, out.shape, out.perm, op.output_qparams)

    def _upsample(self, op: IntegerOp, inputs: Sequence[Value]) -> Value:
        x, shape = self.arranged(inputs[0], (0, 2, 3, 1)), tuple(value(op.node).shape)
        if any(o % i for o, i in zip(shape[2:], x.shape[2:], strict=True)):
            raise unsupported(op, "nearest upsampling by a fraction picks other pixels in LiteRT: use whole factors")
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
