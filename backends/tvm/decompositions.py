"""Float operators that TVM's importer lacks, or takes and computes otherwise than torch: said in others that it has."""

from __future__ import annotations

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
    own scale and its groups of queries, and over axes where there are two.
    """
    if node.target is ATTENTION:
        query = node.args[0]
        assert isinstance(query, Node)
        own = node.kwargs.get("scale") is not None or node.kwargs.get("enable_gqa") or value(query).dim() == 2
        return ATTENTION if own else None  # itself, for torch to decompose
    if node.target in RESAMPLING:
        return resampling(node)
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


FUNCTIONS: dict[Any, Callable[..., Tensor]] = {
    aten.batch_norm.default: _batch_norm,
    aten.group_norm.default: _group_norm,
    aten.amax.default: _amax,
    aten.amin.default: _amin,
    aten.rms_norm.default: _rms_norm,
    aten.logsumexp.default: _logsumexp,
}
