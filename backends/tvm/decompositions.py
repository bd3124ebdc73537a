"""Float operators that TVM's importer lacks, or takes and computes otherwise than torch: said in others that it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.backends.resampling import RESAMPLING, resampling
from edgeq.graph.ops import value

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default


def rewritten(node: Node) -> Callable[..., Tensor] | None:
    """What stands for `node`, as a function of its arguments; None where TVM's importer is right about it.

    The importer normalises batches of other ranks than four along the wrong axis, resamples by the ratio of sizes where
    torch takes the factor it was given, divides by zero where it resamples to a width of 1, and passes over an attention's
    own scale and its groups of queries, and over axes where there are two. It leaves out celu's alpha, the correction of a
    deviation and the eps of an instance norm without a word, puts the axes of a sampling grid elsewhere, and counts bools in
    a way that does not compile.
    """
    if node.target is ATTENTION:
        query = node.args[0]
        assert isinstance(query, Node)
        own = node.kwargs.get("scale") is not None or node.kwargs.get("enable_gqa") or value(query).dim() == 2
        return ATTENTION if own else None  # itself, for torch to decompose
    if node.target in RESAMPLING:
        return resampling(node)
    if node.target is aten.grid_sampler.default:
        mode, padding = node.args[2:4]
        return _grid_sampler if mode in (BILINEAR, NEAREST) and padding in (ZEROS, BORDER) else None
    return FUNCTIONS.get(node.target)


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, *rest: Any
) -> Tensor:
    """As at inference: one factor and one shift a channel."""
    eps = float(rest[2])
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    shape = (-1, *[1] * (x.dim() - 2))
    return x * scale.reshape(shape) + shift.reshape(shape)


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    """The importer wants both a weight and a bias."""
    parts = x.reshape(x.shape[0], groups, -1)
    centred = parts - parts.mean(2, keepdim=True)
    normal = (centred * ((centred * centred).mean(2, keepdim=True) + eps).rsqrt()).reshape(x.shape)
    shape = (-1, *[1] * (x.dim() - 2))
    normal = normal if weight is None else normal * weight.reshape(shape)
    return normal if bias is None else normal + bias.reshape(shape)


def _amax(x: Tensor, axes: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    for axis in sorted((a % x.dim() for a in axes or range(x.dim())), reverse=True):
        x = x.max(axis, keepdim)[0]
    return x


def _amin(x: Tensor, axes: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    return -_amax(-x, axes, keepdim)


def _rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    normal = x * ((x * x).mean(list(range(-len(shape), 0)), keepdim=True) + eps).rsqrt()
    return normal if weight is None else normal * weight


def _logsumexp(x: Tensor, axes: Sequence[int], keepdim: bool = False) -> Tensor:
    top = _amax(x, axes, True)
    total = (x - top).exp().sum(list(axes), keepdim=True).log() + top
    return total if keepdim else _amax(total, axes)


def _celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return x.clamp(min=0) + alpha * ((x.clamp(max=0) / alpha).exp() - 1)


def _variance(
    x: Tensor, axes: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    over = list(axes or range(x.dim()))
    count = math.prod(x.shape[a] for a in over)
    centred = x - x.mean(over, keepdim=True)
    return (centred * centred).sum(over, keepdim=keepdim) / (count - (1 if correction is None else correction))


def _deviation(x: Tensor, axes: Sequence[int] | None = None, **kwargs: Any) -> Tensor:
    return _variance(x, axes, **kwargs).sqrt()


def _instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None, *rest: Any
) -> Tensor:
    """By each image's own statistics, or by those that were tracked."""
    own, eps = bool(rest[0]), float(rest[2])
    if not own:
        assert mean is not None and variance is not None
        return _batch_norm(x, weight, bias, mean, variance, None, None, eps)
    shape, axes = (-1, *[1] * (x.dim() - 2)), list(range(2, x.dim()))
    centred = x - x.mean(axes, keepdim=True)
    normal = centred * ((centred * centred).mean(axes, keepdim=True) + eps).rsqrt()
    normal = normal if weight is None else normal * weight.reshape(shape)
    return normal if bias is None else normal + bias.reshape(shape)


BILINEAR, NEAREST = 0, 1
ZEROS, BORDER = 0, 1


def _grid_sampler(x: Tensor, grid: Tensor, mode: int, padding: int, corners: bool) -> Tensor:
    """[N, C, H, W] read at [N, H', W', 2] of places (x, y) between -1 and 1."""
    count, channels, height, width = x.shape
    pixels, places = x.flatten(2), []
    for axis, size in enumerate((width, height)):
        at = (grid[..., axis] + 1) / 2 * (size - 1) if corners else ((grid[..., axis] + 1) * size - 1) / 2
        places.append(at.clamp(0, size - 1) if padding == BORDER else at)
    across, down = places

    def read(column: Tensor, row: Tensor) -> Tensor:
        inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
        index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
        index = index.to(torch.int64).reshape(count, 1, -1).expand(count, channels, index[0].numel())
        found = pixels.gather(2, index).reshape(count, channels, *grid.shape[1:3])
        return found * inside.to(x.dtype).unsqueeze(1)

    if mode == NEAREST:
        return read(across.round(), down.round())
    left, top = across.floor(), down.floor()
    right_share, lower_share = (across - left).unsqueeze(1), (down - top).unsqueeze(1)
    upper = read(left, top) * (1 - right_share) + read(left + 1, top) * right_share
    lower = read(left, top + 1) * (1 - right_share) + read(left + 1, top + 1) * right_share
    return upper * (1 - lower_share) + lower * lower_share


def _count_nonzero(x: Tensor, axes: int | Sequence[int] | None = None) -> Tensor:
    over = [axes] if isinstance(axes, int) else list(axes or range(x.dim()))
    return (x if x.dtype is torch.bool else x != 0).to(torch.int64).sum(over)


FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    aten.batch_norm.default: _batch_norm,
    aten.group_norm.default: _group_norm,
    aten.amax.default: _amax,
    aten.amin.default: _amin,
    aten.rms_norm.default: _rms_norm,
    aten.logsumexp.default: _logsumexp,
    aten.celu.default: _celu,
    aten.var.correction: _variance,
    aten.std.correction: _deviation,
    aten.instance_norm.default: _instance_norm,
    **dict.fromkeys((aten.count_nonzero.default, aten.count_nonzero.dim_IntList), _count_nonzero),
}
