"""Sums, means and extremes along any neighbouring axes, and averages and columns of windows, as layers and pools."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeq.graph.normalise.affine import call, integers, replace, reshaped
from edgeq.graph.ops import node_arg, set_constant, value

aten = torch.ops.aten

SUMS = (aten.sum.dim_IntList, aten.mean.dim)
EXTREMES = (aten.amax.default, aten.amin.default, aten.max.dim, aten.min.dim)
SMALLEST = (aten.amin.default, aten.min.dim)
LARGEST_TABLE = 1 << 16  # weights of an average over windows of unlike sizes


def spell_out_reduction(module: GraphModule, node: Node) -> None:
    """Rewrite `node` where what it reads comes in integers, and no integer kernel knows it as it stands."""
    if node.target in SUMS and integers(node.args[0]):
        _sum(module, node)
    elif node.target in EXTREMES and integers(node.args[0]):
        _extreme(node)
    elif node.target is aten.adaptive_avg_pool2d.default and integers(node.args[0]):
        _unlike_windows(module, node)
    elif node.target is aten.im2col.default and integers(node.args[0]):
        _columns(module, node)


def _axes(node: Node) -> tuple[int, int] | None:
    """The first and the last of the neighbouring axes that `node` reduces, None where there is something between."""
    rank, given = value(node.args[0]).dim(), node_arg(node, 1, None)
    axes = sorted(a % rank for a in ([given] if isinstance(given, int) else given or range(rank)))
    if rank == 0 or node.kwargs.get("dtype") is not None or axes != list(range(axes[0], axes[-1] + 1)):
        return None
    return axes[0], axes[-1]


def _of_squares(node: Node) -> bool:
    """Whether a sum or a mean is a norm's: of squares, or one that is taken off what it was made of."""
    x = node.args[0]
    assert isinstance(x, Node)
    square = x.target in (aten.pow.Tensor_Scalar, aten.square.default)
    square |= x.target is aten.mul.Tensor and x.args[0] is x.args[1]
    return square or any(u.target is aten.sub.Tensor and x in u.args for u in node.users)


def _sum(module: GraphModule, node: Node) -> None:
    """A sum is a layer of ones, a mean one of 1/n; over height and width a mean is what it is, and a sum that times n.

    Norms keep theirs: sums of squares on a grid of int8 lose what is small.
    """
    x, axes = node.args[0], _axes(node)
    assert isinstance(x, Node)
    mean, shape = node.target is aten.mean.dim, list(value(x).shape)
    if axes is None or _of_squares(node) or (mean and len(shape) == 4 and axes == (2, 3)):
        return
    first, last = axes
    count, outer, inner = (math.prod(part) for part in (shape[first : last + 1], shape[:first], shape[last + 1 :]))
    if len(shape) == 4 and axes == (2, 3):
        result = call(node, aten.mean.dim, x, [2, 3], node_arg(node, 2, False))
        result = call(node, aten.mul.Tensor, result, float(count))
    else:
        each = torch.full((1, count), 1 / count if mean else 1.0)
        if inner == 1:
            weight = _constant(module, node, each)
            result = reshaped(node, x, [*shape[:first], count])
            result = call(node, aten.linear.default, result, weight, shape=[*shape[:first], 1])
        else:
            weight = _constant(module, node, each.reshape(1, count, 1, 1))
            wide = shape[2:] if len(shape) == 4 and axes == (1, 1) else [inner, 1]
            result = reshaped(node, x, [outer, count, *wide])
            ways = (None, [1, 1], [0, 0], [1, 1], 1)
            result = call(node, aten.conv2d.default, result, weight, *ways, shape=[outer, 1, *wide])
    replace(node, reshaped(node, result, value(node).shape))


def _extreme(node: Node) -> None:
    """The largest along neighbouring axes is a pool of one window, the smallest that of what is turned over."""
    x, axes, made = node.args[0], _axes(node), node.meta["val"]
    assert isinstance(x, Node)
    if not isinstance(made, Tensor):  # values and places
        if any(u.target is not operator.getitem or u.args[1] != 0 for u in node.users):
            return
        made = made[0]
    if axes is None:
        return
    first, last = axes
    shape = list(value(x).shape)
    count, outer, inner = (math.prod(part) for part in (shape[first : last + 1], shape[:first], shape[last + 1 :]))
    whole = len(shape) == 4 and axes == (2, 3)
    if count == 1:
        return
    result = call(node, aten.neg.default, x) if node.target in SMALLEST else x
    result = result if whole else reshaped(node, result, [outer, 1, count, inner])
    window = shape[2:] if whole else [count, 1]
    result = call(node, aten.max_pool2d.default, result, window, window)
    result = reshaped(node, result, made.shape)
    if node.target in SMALLEST:
        result = call(node, aten.neg.default, result)
    for user in list(node.users):
        if user.target is operator.getitem:
            replace(user, result)
    replace(node, result)


def _unlike_windows(module: GraphModule, node: Node) -> None:
    """An adaptive average whose windows are of several sizes, as pyramids have them: one linear over all places.

    Window i of m over n places reaches from floor(i·n/m) to ceil((i + 1)·n/m), as torch's AdaptiveAveragePooling.cpp has it.
    """
    x = node.args[0]
    assert isinstance(x, Node)
    *before, high, wide = value(x).shape
    tall, broad = value(node).shape[-2:]
    if (tall, broad) == (1, 1) or high * wide * tall * broad > LARGEST_TABLE:
        return
    table = torch.kron(_windows(high, tall), _windows(wide, broad))
    result = reshaped(node, x, [*before, high * wide])
    weight = _constant(module, node, table)
    result = call(node, aten.linear.default, result, weight, shape=[*before, tall * broad])
    replace(node, reshaped(node, result, value(node).shape))


def _windows(places: int, count: int) -> Tensor:
    table = torch.zeros(count, places, dtype=torch.float64)
    for i in range(count):
        begin, end = i * places // count, -(-(i + 1) * places // count)
        table[i, begin:end] = 1 / (end - begin)
    return table


def _columns(module: GraphModule, node: Node) -> None:
    """torch.nn.functional.unfold: every channel's window, element by element, is a grouped convolution of ones and zeros."""
    x, kernel, dilation, padding, stride = node.args
    assert isinstance(x, Node) and isinstance(kernel, (list, tuple))
    if value(x).dim() != 4:
        return
    channels, size = value(x).shape[1], math.prod(kernel)
    picks = torch.eye(size).reshape(size, 1, *kernel).repeat(channels, 1, 1, 1)
    weight = _constant(module, node, picks)
    ways = (None, stride, padding, dilation, channels)
    empty = torch.empty(value(x).shape, device="meta")
    shape = aten.conv2d.default(empty, picks.to("meta"), *ways).shape
    result = call(node, aten.conv2d.default, x, weight, *ways, shape=shape)
    replace(node, reshaped(node, result, value(node).shape))


def _constant(module: GraphModule, node: Node, numbers: Tensor) -> Node:
    with node.graph.inserting_before(node):
        return set_constant(module, f"{node.name}_ones", numbers.float())
