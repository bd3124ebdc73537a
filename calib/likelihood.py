"""What a network's outputs say: a class, or numbers; and how far two networks' outputs lie apart as distributions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.floats import Floats
from edgeq.graph.capture import Captured
from edgeq.graph.ops import kind_of, value
from edgeq.graph.ordered import ordered

LEAST: Final = torch.finfo(torch.float32).tiny  # of a probability


def names_classes(captured: Captured) -> bool:
    """Whether there is one output of floats [N, C], C > 1, for N examples: logits, or a distribution, over classes."""
    node = _only(captured)
    if node is None:
        return False
    made = value(node)
    sized = made.dim() == 2 and made.shape[0] == Floats(captured).first and made.shape[1] > 1
    return sized and made.is_floating_point()


def is_softened(captured: Captured) -> bool:
    """Whether what names classes is a distribution already, behind a softmax."""
    node = _only(captured)
    return node is not None and kind_of(node) == "softmax" and names_classes(captured)


def _only(captured: Captured) -> Node | None:
    results = captured.module.graph.output_node().args[0]
    single = isinstance(results, (tuple, list)) and len(results) == 1
    return results[0] if single and isinstance(results[0], Node) else None  # type: ignore[index] # of one node


def log_likely(output: Tensor, *, softened: bool) -> Tensor:
    """log p of each class, [N, C], of logits or of a distribution."""
    return output.clamp(min=LEAST).log() if softened else output.log_softmax(1)


@ordered()
def squared_size(x: Tensor) -> float:
    """Σ x², added in float64."""
    return float(x.double().square().sum())


def divergence(
    captured: Captured, pairs: Iterable[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]], frames: int
) -> float:
    """KL(float ‖ other) of outputs (float's, the other's) of `frames` batches: the mean over examples where they name classes;
    else over batches, of normal distributions around each output whose deviation is float's root mean square over all.
    """
    if names_classes(captured):
        softened, found = is_softened(captured), list[float]()
        for both in pairs:
            p, q = (log_likely(outputs[0].double(), softened=softened) for outputs in both)
            found += (p.exp() * (p - q)).sum(1).tolist()
        return sum(found) / len(found)
    results = len(captured.outputs)
    error, power, count = [0.0] * results, [0.0] * results, [0] * results
    for real, made in pairs:
        for index, (y, x) in enumerate(zip(real, made, strict=True)):
            error[index] += squared_size(x.double() - y.double())
            power[index] += squared_size(y)
            count[index] += y.numel()
    return sum(e * n / (2 * p) for e, p, n in zip(error, power, count, strict=True) if p > 0) / frames
