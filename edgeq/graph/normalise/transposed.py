"""Transposed convolutions as kernels have them: of one axis on two; of groups or dilated as plain ones on zeros in between."""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgeq.graph.normalise.affine import call, integers, replace, reshaped
from edgeq.graph.ops import constant, conv_attrs, node_arg, set_constant, value

aten = torch.ops.aten


def spell_out_transposed(module: GraphModule, node: Node) -> None:
    """Rewrite `node` where it is a transposed convolution with constant weights that no integer kernel takes as it stands."""
    if node.target is aten.conv_transpose1d.default and _constant(node):
        node = _flat(module, node)
    if node.target is not aten.conv_transpose2d.input or not _constant(node) or not integers(node.args[0]):
        return
    attrs = conv_attrs(node, "conv_transpose2d")
    if attrs.groups > 1 or any(d != 1 for d in attrs.dilation):
        _spread_out(module, node)


def _constant(node: Node) -> bool:
    weights = [node.args[1], node_arg(node, 2, None)]
    return all(w is None or (isinstance(w, Node) and w.op == "get_attr") for w in weights)


def _flat(module: GraphModule, node: Node) -> Node:
    """A transposed convolution [N, C, L] as one of two axes, the first of size 1; returns that."""
    x, weight = node.args[:2]
    assert isinstance(x, Node) and isinstance(weight, Node)

    def two(at: int, default: int) -> list[int]:
        given = node_arg(node, at, default)
        return [default, *(given if isinstance(given, (list, tuple)) else [given])]

    ways = (two(3, 1), two(4, 0), two(5, 0), node_arg(node, 6, 1), two(7, 1))
    shape = list(value(node).shape)
    plane = reshaped(node, x, [*value(x).shape[:2], 1, *value(x).shape[2:]])
    with node.graph.inserting_before(node):
        kernel = set_constant(module, str(weight.target), constant(module, weight).unsqueeze(2))
    made = call(
        node,
        aten.conv_transpose2d.input,
        *(plane, kernel, node_arg(node, 2, None), *ways),
        shape=[*shape[:2], 1, *shape[2:]],
    )
    replace(node, reshaped(node, made, shape))
    return made


def _spread_out(module: GraphModule, node: Node) -> None:
    """Zeros between the elements, a convolution with the kernel turned around (Dumoulin and Visin 2016, section 4).

    Reshape, pad behind, reshape: first along rows, then along columns, so that all is moves of four axes.
    """
    x, weight = node.args[:2]
    assert isinstance(x, Node) and isinstance(weight, Node)
    attrs = conv_attrs(node, "conv_transpose2d")
    count, channels, high, wide = value(x).shape
    (down, across), kernel = attrs.stride, value(weight).shape[2:]
    result = x
    if across > 1:
        result = reshaped(node, result, [count, channels, high * wide, 1])
        result = call(node, aten.constant_pad_nd.default, result, [0, across - 1])
        wide *= across
    if down > 1:
        result = reshaped(node, result, [count, channels, high, wide])
        result = call(node, aten.constant_pad_nd.default, result, [0, wide * (down - 1)])
        high *= down
    result = reshaped(node, result, [count, channels, high, wide])
    amounts = []  # last axis first; what stands behind the last element is too much already
    for axis in (1, 0):
        front = attrs.dilation[axis] * (kernel[axis] - 1) - attrs.padding[axis]
        behind = front + (attrs.output_padding or (0, 0))[axis] - (attrs.stride[axis] - 1)
        amounts += [front, behind]
    for axis, front, behind in ((3, *amounts[:2]), (2, *amounts[2:])):
        if min(front, behind) < 0:
            kept = (max(-front, 0), value(result).shape[axis] + min(behind, 0))
            result = call(node, aten.slice.Tensor, result, axis, *kept)
    if any(a > 0 for a in amounts):
        result = call(node, aten.constant_pad_nd.default, result, [max(a, 0) for a in amounts])
    groups = attrs.groups
    turned = constant(module, weight).flip(2, 3)
    inputs, outputs = turned.shape[0] // groups, turned.shape[1]
    turned = turned.reshape(groups, inputs, outputs, *kernel).transpose(1, 2)
    with node.graph.inserting_before(node):
        named = set_constant(module, str(weight.target), turned.reshape(groups * outputs, inputs, *kernel))
    ways = (node_arg(node, 2, None), [1, 1], [0, 0], list(attrs.dilation), groups)
    made = call(node, aten.conv2d.default, result, named, *ways, shape=value(node).shape)
    replace(node, made)
