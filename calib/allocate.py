"""Bits under a size budget: of all ways to give each layer a precision, the one whose sensitivities add up to least.

Cai et al. 2020, ZeroQ (arXiv 2001.00281), section 3.3: minimise Σ Ω_i(k_i) where Σ P_i k_i is at most the budget, by dynamic
programming over the layers. Budgets of latency, and what shares a tensor, are edgeq.search's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from edgeq.spec import EdgeqError

STEPS: Final = 10_000  # into which a larger budget is divided; sizes are rounded up to them


def allocate(costs: Sequence[Mapping[str, float]], sizes: Sequence[Mapping[str, int]], budget: int) -> list[str]:
    """The precision of each layer.

    costs, sizes: of each layer, precision → sensitivity, and → bytes, of the same precisions. budget: bytes of all layers; the
    answer is the best where that is at most STEPS, else the best with each layer's size rounded up to a STEPS-th of it.

    Raises:
        EdgeqError: the smallest precisions together are beyond the budget.
    """
    smallest = [min(size, key=lambda name: (size[name], costs[i][name])) for i, size in enumerate(sizes)]
    least = sum(size[name] for size, name in zip(sizes, smallest, strict=True))
    if least > budget:
        raise EdgeqError(
            f"a budget of {budget} bytes is below the smallest plan, which has {least}: raise it, or offer fewer bits"
        )
    unit = max(1, -(-budget // STEPS))
    room = budget // unit
    best, picked = np.zeros(room + 1), []
    for cost, size in zip(costs, sizes, strict=True):
        table = np.full((len(size), room + 1), np.inf)
        for row, (name, count) in enumerate(size.items()):
            units = -(-count // unit)
            if units <= room:
                table[row, units:] = best[: room + 1 - units] + cost[name]
        picked.append(table.argmin(0))
        best = table.min(0)
    if not np.isfinite(best[room]):  # so near the smallest that rounding alone is beyond it
        return smallest
    found = []
    for size, rows in zip(reversed(sizes), reversed(picked), strict=True):
        name = list(size)[rows[room]]
        room -= -(-size[name] // unit)
        found.append(name)
    return found[::-1]
