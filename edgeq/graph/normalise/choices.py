"""The larger, the smaller, what a comparison picks, slopes by channel: sums of clips, which every runtime has in integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeq.graph.normalise.affine import call, depthwise, integers, replace, span
from edgeq.graph.ops import constant, node_arg, set_constant, value

aten = torch.ops.aten

LARGER = (aten.maximum.default, aten.max.other)
SMALLER = (aten.minimum.default, aten.min.other)
COMPARED = ("gt", "ge", "lt", "le")


def spell_out_choice(module: GraphModule, node: Node) -> None:
    """Rewrite `node` where it chooses between tensors that come in integers; what chooses by numbers alone is a curve."""
    result: Node | None = None
    if node.target is aten.prelu.default:
        result = _slopes(module, node)
    elif node.target in LARGER or node.target in SMALLER:
        result = _extreme(module, node, node.args[0], node.args[1], node.target in LARGER)
    elif node.target is aten.clamp.Tensor:
        result = _between(module, node)
    elif node.target is aten.where.self:
        result = _picked(module, node)
    elif node.target is aten.cat.default:
        result = _beside_constants(module, node)
    if result is not None:
        replace(node, result)


def _slopes(module: GraphModule, node: Node) -> Node | None:
    """A PReLU of a slope a channel (He et al., 2015, equation 1): relu(x) ∓ relu(−|a|·x), as the sign of its slopes says.

    Of slopes of both signs the second part gets its sign from one more layer.
    """
    x, slope = node.args
    if not isinstance(slope, Node) or slope.op != "get_attr" or value(slope).numel() == 1 or not integers(x):
        return None
    assert isinstance(x, Node)
    a = constant(module, slope).double()
    below = call(node, aten.relu.default, depthwise(module, node, x, -a.abs(), None))
    above = call(node, aten.relu.default, x)
    if bool((a >= 0).all()):
        return call(node, aten.sub.Tensor, above, below)
    if bool((a < 0).any() and (a > 0).any()):
        below = depthwise(module, node, below, -a.sign(), None)
    return call(node, aten.add.Tensor, above, below)


def _extreme(module: GraphModule, node: Node, first: Any, second: Any, larger: bool) -> Node | None:
    """max(a, b) = a + relu(b − a), min(a, b) = a − relu(a − b); of a constant b: b ± relu(±(a − b))."""
    if not isinstance(first, Node) or not isinstance(second, Node):
        return None
    if first.op == "get_attr":
        first, second = second, first
    if value(first).shape != value(node).shape or not integers(first):
        return None
    if second.op == "get_attr":
        return _beyond(module, node, first, constant(module, second), larger)
    if value(second).shape != value(node).shape or not integers(second):
        return None
    over = call(node, aten.sub.Tensor, *((second, first) if larger else (first, second)))
    over = call(node, aten.relu.default, over)
    return call(node, aten.add.Tensor if larger else aten.sub.Tensor, first, over)


def _beyond(module: GraphModule, node: Node, x: Node, bound: Tensor, larger: bool) -> Node | None:
    found = span(bound, value(x).shape) if bool(bound.isfinite().all()) else None
    if found is None:
        return None
    number, axes = found
    sign = torch.ones_like(number) if larger else -torch.ones_like(number)
    over = call(node, aten.relu.default, depthwise(module, node, x, sign, -sign * number, axes))
    return depthwise(module, node, over, sign, number, axes)


def _between(module: GraphModule, node: Node) -> Node | None:
    """A clamp by tensors."""
    result = node.args[0]
    bounds = [node_arg(node, at, node.kwargs.get(name)) for at, name in ((1, "min"), (2, "max"))]
    if not all(b is None or (isinstance(b, Node) and b.op == "get_attr" and value(b).numel() > 1) for b in bounds):
        return None
    for bound, larger in zip(bounds, (True, False), strict=True):
        if bound is not None:
            made = _extreme(module, node, result, bound, larger)
            if made is None:
                return None
            result = made
    return result if isinstance(result, Node) else None


def _picked(module: GraphModule, node: Node) -> Node | None:
    """where(c(x), a, b) = m·a + (1 − m)·b with m = 1 where x compares so with a number, else 0: m is a curve of x."""
    condition, *both = node.args
    if not isinstance(condition, Node) or getattr(condition.target, "__name__", "").split(".")[0] not in COMPARED:
        return None
    x, number = condition.args[:2]
    if isinstance(number, Node) or not integers(x) or any(not isinstance(b, Node) for b in both):
        return None
    tensors = [b for b in both if isinstance(b, Node)]
    if any(value(t).shape != value(node).shape for t in (x, *tensors)) or not all(integers(t) for t in tensors):
        return None
    if all(t is x for t in tensors):
        return None
    with node.graph.inserting_before(node):
        one, none = (set_constant(module, f"{node.name}_number", torch.tensor(n)) for n in (1.0, 0.0))
    parts = []
    for tensor, numbers in zip(tensors, ((one, none), (none, one)), strict=True):
        compared = call(node, condition.target, x, number)  # one for each, as a curve ends where two read it
        mask = call(node, aten.where.self, compared, *numbers, shape=value(node).shape)
        parts.append(call(node, aten.mul.Tensor, mask, tensor))
    return call(node, aten.add.Tensor, *parts)


def _beside_constants(module: GraphModule, node: Node) -> Node | None:
    """Tensors joined with constants, as a class token stands before its patches: padded with zeros, and the constants added."""
    parts, axis = node.args[0], node_arg(node, 1, 0) % value(node).dim()
    if not isinstance(parts, (list, tuple)):
        return None
    fixed = [isinstance(p, Node) and p.op == "get_attr" for p in parts]
    begin, end = (fixed.index(False), len(fixed) - fixed[::-1].index(False)) if not all(fixed) else (0, 0)
    inner = list(parts[begin:end])
    if not any(fixed) or not inner or any(fixed[begin:end]) or not all(integers(p) for p in inner):
        return None
    sizes = [value(p).shape[axis] for p in parts]
    front, behind = sum(sizes[:begin]), sum(sizes[end:])
    table = torch.zeros(value(node).shape, dtype=torch.float64)
    for at, (part, is_fixed) in enumerate(zip(parts, fixed, strict=True)):
        if is_fixed:
            table.narrow(axis, sum(sizes[:at]), sizes[at]).copy_(constant(module, part))
    found = span(table, table.shape)
    if found is None or not bool(table.isfinite().all()):
        return None
    number, axes = found
    result = inner[0] if len(inner) == 1 else call(node, aten.cat.default, inner, axis)
    assert isinstance(result, Node)
    result = call(node, aten.constant_pad_nd.default, result, [0, 0] * (table.dim() - 1 - axis) + [front, behind])
    return depthwise(module, node, result, torch.ones_like(number), number, axes)
