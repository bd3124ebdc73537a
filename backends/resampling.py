"""Resampling as weighted sums of few places along each axis: for runtimes whose own operators pick other places than torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.graph.ops import value

aten = torch.ops.aten

# a weighted sum of few places along each axis of size, whose weights depend on shapes alone
RESAMPLING: dict[Any, int] = {
    **dict.fromkeys((aten.upsample_nearest1d.vec, aten._upsample_nearest_exact1d.vec, aten.upsample_linear1d.vec), 1),
    **dict.fromkeys((aten.upsample_nearest2d.vec, aten._upsample_nearest_exact2d.vec, aten.upsample_bilinear2d.vec), 2),
    **dict.fromkeys(
        (aten.upsample_nearest3d.vec, aten._upsample_nearest_exact3d.vec, aten.upsample_trilinear3d.vec), 3
    ),
    **dict.fromkeys(
        (aten.upsample_nearest2d.default, aten.upsample_bicubic2d.vec, aten.adaptive_avg_pool2d.default), 2
    ),
    aten.adaptive_avg_pool1d.default: 1,
    aten.adaptive_avg_pool3d.default: 3,
}


def resampling(node: Node) -> Callable[..., Tensor]:
    """What `node`, whose operator is in RESAMPLING, computes, as a function of its arguments."""
    axes = RESAMPLING[node.target]
    source = node.args[0]
    assert isinstance(source, Node)
    size = tuple(value(source).shape)[-axes:]
    found = [_taps(node, size, axis) for axis in range(axes)]
    return lambda x, *_, **__: _resampled(x, found)


# places int64 [out], weights [out, 1, ...] (None: 1); contiguous, as litert-torch takes two constants that are not for one
# where the second one's copy happens to lie where the first one's lay
Tap = tuple[Tensor, Tensor | None]


def _taps(node: Node, size: Sequence[int], axis: int) -> list[Tap]:
    """One for each place along `axis` that an output reads, as torch's own operator weighs them."""
    n, others = size[axis], [1] * len(size)
    others[axis] = n
    ones = torch.eye(n).reshape(n, 1, *others).expand(n, 1, *size)
    spread: Tensor = node.target(ones, *node.args[1:], **node.kwargs)  # type: ignore[operator] # an aten operator
    matrix = spread.movedim(2 + axis, 1).reshape(n, spread.shape[2 + axis], -1)[..., 0].T  # [out, in]
    count = int((matrix != 0).sum(1).max())
    places = matrix.abs().topk(count, 1).indices
    weights = matrix.gather(1, places)
    if bool((weights == 1).all()):
        return [(places[:, 0].contiguous(), None)]
    behind = [1] * (len(size) - 1 - axis)
    return [(places[:, k].contiguous(), weights[:, k].reshape(-1, *behind).contiguous()) for k in range(count)]


def _resampled(x: Tensor, taps: Sequence[Sequence[Tap]]) -> Tensor:
    for axis, pairs in enumerate(taps, start=x.dim() - len(taps)):
        picked = [(x.index_select(axis, places), weights) for places, weights in pairs]
        x, *others = [part if weights is None else part * weights for part, weights in picked]
        for part in others:
            x = x + part
    return x
