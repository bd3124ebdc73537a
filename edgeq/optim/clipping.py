"""Percentile clipping (bitsandbytes' `percentile_clipping`): a gradient's norm against the parameter's last hundred."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeq.optim.maps import _blocked

HISTORY = 100  # norms that are remembered


@dataclass(frozen=True, slots=True)
class Clipping:
    """Gradients whose norm is above the `percentile` of the last HISTORY norms are scaled down to it."""

    percentile: float

    def factor(self, gradient: Tensor | None, norms: Tensor, size: int) -> tuple[float, Tensor]:
        """What the gradient is to be multiplied by, at most 1, and the remembered norms with this one.

        The percentile is the smallest remembered norm that at least so many percent of them do not exceed.
        """
        assert gradient is not None
        norm = float(_norm(gradient, size))
        norms = torch.cat([norms, torch.tensor([norm])])[-HISTORY:]
        rank = max(1, -(-int(self.percentile * norms.numel()) // 100))
        limit = float(norms.sort().values[rank - 1])
        return (limit / norm if norm > limit else 1.0), norms


def _norm(gradient: Tensor, size: int) -> Tensor:
    """In float64, by blocks: whole sums of one thread each, so that it does not depend on how many threads there are."""
    sums = _blocked(gradient.double().square(), size).sum(1)
    while sums.numel() > 1:
        sums = _blocked(sums, size).sum(1)
    return sums.sqrt().squeeze(0)
