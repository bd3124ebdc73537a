"""What rewrites build with: calls with their shapes, affines as depthwise layers, and whether integers may reach a tensor."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeq.graph.curves import POINTWISE
from edgeq.graph.kinds import role_of
from edgeq.graph.ops import aten_name, kind_of, set_constant, value

aten = torch.ops.aten

WIDEST = 1 << 16  # channels of a layer that an affine becomes; wider constants are left to the runtime
AXES = "affine"  # in `meta` of a layer that an affine became, or of the reshape behind: the first and last axis of its numbers


def call(node: Node, target: Any, *args: Any, shape: Any = None) -> Node:
    """A call in front of `node` that counts as its layer's; shape: of what it makes, where constants are among `args`."""
    with node.graph.inserting_before(node):
        made = node.graph.call_function(target, args)
    known = value(node).new_empty(tuple(shape)) if shape is not None else target(*torch.fx.map_arg(args, value))
    made.meta = {**node.meta, "val": known}
    made.meta.pop(AXES, None)
    return made


def replace(node: Node, result: Node) -> None:
    """Let those that read `node` read `result`."""
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)


def reshaped(node: Node, source: Node, shape: Any) -> Node:
    """`source` in another shape, by a call in front of `node`; itself where it has that shape."""
    wanted = [int(size) for size in shape]
    return source if list(value(source).shape) == wanted else call(node, aten.reshape.default, source, wanted)


def integers(source: Any) -> bool:
    """Whether `source` may come in integers: layers, products or inputs make it, through nothing that is computed in float."""
    pending, seen = [source], set()
    while pending:
        node = pending.pop()
        if not isinstance(node, Node) or not isinstance(node.meta.get("val"), Tensor):
            return False
        if node in seen or not value(node).is_floating_point() or node.op == "placeholder":
            continue
        seen.add(node)
        role = role_of(kind_of(node))
        if role in ("layer", "product"):
            continue
        if node.op != "call_function" or role == "normal" or (role is None and aten_name(node) not in POINTWISE):
            return False
        pending += [n for n in node.all_input_nodes if n.op != "get_attr"]
    return value(source).is_floating_point()


def between(node: Node) -> bool:
    """Whether `node` reads what may come in integers, and a layer or a product computes with what it gives.

    What a network ends with, as boxes in pixels, is left alone: it keeps its floats.
    """
    if not integers(node.args[0]) and not any(integers(n) for n in node.all_input_nodes):
        return False
    pending, seen = [node], set()
    while pending:
        for user in pending.pop().users:
            role = role_of(kind_of(user))
            if role in ("layer", "product"):
                return True
            plain = user.target is operator.getitem or aten_name(user) in POINTWISE
            if user not in seen and role != "normal" and (role is not None or plain):
                seen.add(user)
                pending.append(user)
    return False


def depthwise(
    module: GraphModule, node: Node, source: Node, factor: Tensor, offset: Tensor | None, axes: tuple[int, int] = (1, 1)
) -> Node:
    """factor · x + offset, in front of `node`, as a depthwise 1×1 convolution.

    axes: the first and the last axis of `source` that the numbers, float64, count along; their elements are channels.
    """
    shape = list(value(source).shape)
    first, last = axes
    channels = factor.numel()
    if len(shape) == 4 and axes == (1, 1):
        four = shape
    elif axes == (1, 1) and len(shape) > 4:
        four = [shape[0], channels, shape[2], math.prod(shape[3:])]
    else:
        four = [math.prod(shape[:first]), channels, math.prod(shape[last + 1 :]), 1]
    flat = reshaped(node, source, four)
    with node.graph.inserting_before(node):
        weight = set_constant(module, f"{node.name}_weight", factor.reshape(channels, 1, 1, 1))
        bias = None if offset is None else set_constant(module, f"{node.name}_bias", offset.reshape(channels))
    layer = call(node, aten.conv2d.default, flat, weight, bias, [1, 1], [0, 0], [1, 1], channels, shape=four)
    result = reshaped(node, layer, shape)
    layer.meta[AXES] = result.meta[AXES] = axes
    return result


def span(number: Tensor, shape: Any) -> tuple[Tensor, tuple[int, int]] | None:
    """`number` spread over the axes of a tensor of `shape` that it differs along, and the first and last of them.

    None: it is one number, it differs along the first of several, or it has more than WIDEST elements then.
    """
    sizes = [1] * (len(shape) - number.dim()) + list(number.shape)
    found = [axis for axis, size in enumerate(sizes) if size != 1]
    if not found or len(sizes) != len(shape) or (found[0] == 0 and len(shape) > 1):
        return None
    first, last = found[0], found[-1]
    inside = list(shape[first : last + 1])
    if math.prod(inside) > WIDEST:
        return None
    return number.double().reshape(sizes[first : last + 1]).expand(inside).contiguous(), (first, last)
