"""Float operators that litert-torch converts wrongly, refuses, or dies of: said in others that it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from edgeq.backends.resampling import RESAMPLING, resampling
from edgeq.graph.integer import DEQUANTIZE
from edgeq.graph.ops import node_arg, value
from edgeq.spec import EdgeqError

aten = torch.ops.aten

NEAREST = (aten.upsample_nearest2d.vec, aten.upsample_nearest2d.default)
POOLS = (aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default)
PARTED = (
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.tensor_split.sections,
    aten.unbind.int,
)
RSUBS = (aten.rsub.Scalar, aten.rsub.Tensor)
SUBS = (aten.sub.Tensor, aten.sub.Scalar)
DIVISIONS = (aten.div.Tensor, aten.div.Tensor_mode, aten.div.Scalar, aten.div.Scalar_mode, aten.true_divide.Tensor)
# → axes of the kernel
TRANSPOSED = {aten.conv_transpose1d.default: 1, aten.conv_transpose2d.input: 2, aten.conv_transpose3d.input: 3}


def rewritten(node: Node) -> Callable[..., Any] | None:
    """What stands for `node`, as a function of its arguments; None where litert-torch is right about it.

    Its RESIZE operators pick places by the ratio of sizes, where torch takes the factor that it was given; a 3-D
    convolution in groups, or of one channel, ends its process; lists of one tensor are taken for a tensor; a transposed
    convolution has no operator in LiteRT where it is dilated, 3-D, or padded by more than its kernel reaches. Its passes
    that move a transposition (of a convolution's output too) behind c - x or c / x make x - c and x / c of them where c is
    a constant.

    Raises:
        EdgeqError: a dilated 3-D convolution.
    """
    if node.target in RESAMPLING:
        return None if _resizes(node) else resampling(node)
    if node.target is aten.conv3d.default:
        _refuse_dilated(node, 5)
        return _by_group if node_arg(node, 6, 1) != 1 or value(node.args[1]).shape[1] == 1 else None
    if node.target in PARTED and len(node.meta["val"]) == 1:  # the converter takes a list of one for a tensor
        whole = tuple(node.meta["val"][0].shape)
        return lambda x, *_, **__: (x.reshape(whole),)
    if node.target in TRANSPOSED:
        if node.target is aten.conv_transpose3d.input:
            _refuse_dilated(node, 7)
        rank, kernel = TRANSPOSED[node.target], node.args[1]
        dilated = any(d != 1 for d in _each(node_arg(node, 7, 1), rank))
        pads = _each(node_arg(node, 4, 0), rank)
        beyond = any(p >= k for p, k in zip(pads, value(kernel).shape[2:], strict=True))
        return _spread_and_convolved if rank == 3 or dilated or beyond else None
    if node.target in RSUBS or (node.target in SUBS and _fixed(node.args[0])):
        return _from_left if node.target in SUBS else _from_right
    if node.target is aten.reciprocal.default:
        return lambda x: _same(x) / x
    if node.target in DIVISIONS and _fixed(node.args[0]):
        return lambda c, x, **kwargs: node.target(_same(x) * c, x, **kwargs)  # type: ignore[operator] # an aten operator
    return None


def _fixed(operand: Any) -> bool:
    """Whether an operand is a number or computed from constants alone."""
    if not isinstance(operand, Node) or operand.op == "get_attr":
        return True
    return (
        operand.op == "call_function" and operand.target is not DEQUANTIZE and all(map(_fixed, operand.all_input_nodes))
    )


def _from_left(constant: Any, x: Tensor, *, alpha: float = 1) -> Tensor:
    return constant + -(x if alpha == 1 else x * alpha)  # type: ignore[no-any-return] # a tensor


def _from_right(x: Tensor, constant: Any, alpha: float = 1) -> Tensor:
    return _from_left(constant, x, alpha=alpha)


def _same(x: Tensor) -> Tensor:
    """Ones that depend on `x`, so that nothing takes them for a constant; 0 where `x` is NaN."""
    return (x == x).to(x.dtype)


def _refuse_dilated(node: Node, at: int) -> None:
    """Of three axes: litert-torch ends the process on some of them."""
    if any(d != 1 for d in _each(node_arg(node, at, 1), 3)):
        raise EdgeqError(
            f"{node.name}: LiteRT has no operator for a dilated 3-D convolution; write it without dilation, or export to "
            "another runtime"
        )


def _resizes(node: Node) -> bool:
    """Whether LiteRT's own operator computes what torch does."""
    source = node.args[0]
    assert isinstance(source, Node)
    axes = RESAMPLING[node.target]
    pairs = list(zip(value(source).shape[-axes:], value(node).shape[-axes:], strict=True))
    if node.target in POOLS:
        return all(n % m == 0 for n, m in pairs)
    if node.target in NEAREST:
        return all(m % n == 0 for n, m in pairs)
    if node.target is not aten.upsample_bilinear2d.vec:
        return False
    factors = node.args[3] if len(node.args) > 3 else node.kwargs.get("scale_factors")
    asked = factors if isinstance(factors, (list, tuple)) else [None] * axes
    corners = bool(node.args[2])
    return corners or all(f is None or f * n == m for f, (n, m) in zip(asked, pairs, strict=True))


def _by_group(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """A grouped 3-D convolution as one for each group; where that has one channel, zeros stand beside it."""
    apart = groups > 1  # the converter takes a list of one for a tensor
    parts = list(zip(x.chunk(groups, 1), weight.chunk(groups), strict=True)) if apart else [(x, weight)]
    if weight.shape[1] == 1:
        parts = [(torch.cat((a, torch.zeros_like(a)), 1), torch.cat((w, torch.zeros_like(w)), 1)) for a, w in parts]
    made = torch.cat([F.conv3d(a, w, None, stride, padding, dilation) for a, w in parts], 1)
    return made if bias is None else made + bias.reshape(1, -1, 1, 1, 1)


def _spread_and_convolved(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """A transposed convolution as zeros between the input's places and a convolution by the kernel turned round."""
    rank = weight.dim() - 2
    strides, pads, extras, dilations = (_each(n, rank) for n in (stride, padding, output_padding, dilation))
    for axis, (s, p, e, d, k) in enumerate(
        zip(strides, pads, extras, dilations, weight.shape[2:], strict=True), start=2
    ):
        reach = d * (k - 1)
        x = _widened(_spread(x, axis, s), axis, reach - p, reach - p + e - (s - 1))
    turned = weight.flip(list(range(2, 2 + rank)))
    apart = turned.reshape(groups, -1, *turned.shape[1:])
    turned = apart.transpose(1, 2).flatten(0, 1)  # each group's outputs first
    convolve = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    if rank == 3 and (groups > 1 or turned.shape[1] == 1):
        return _by_group(x, turned, bias, 1, 0, tuple(dilations), groups)
    made: Tensor = convolve(x, turned, bias, dilation=tuple(dilations), groups=groups)
    return made


def _spread(x: Tensor, axis: int, step: int) -> Tensor:
    """`x` with step - 1 zeros behind each place of an axis."""
    if step == 1:
        return x
    apart = x.unsqueeze(axis + 1)
    return torch.cat([apart, *[torch.zeros_like(apart)] * (step - 1)], axis + 1).flatten(axis, axis + 1)


def _widened(x: Tensor, axis: int, front: int, behind: int) -> Tensor:
    """`x` with zeros before and behind along an axis; a negative number cuts off."""
    x = x.narrow(axis, max(-front, 0), x.shape[axis] + min(front, 0) + min(behind, 0))
    amounts = [0, 0] * (x.dim() - 1 - axis) + [max(front, 0), max(behind, 0)]
    return F.pad(x, amounts) if front > 0 or behind > 0 else x


def _each(numbers: Any, rank: int) -> Sequence[int]:
    given = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
    return given if len(given) == rank else given * rank
