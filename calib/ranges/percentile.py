"""Range method `percentile:P`: P % of the values lie below the upper end, and P % above the lower one."""

from __future__ import annotations

import numpy as np

from edgeq.calib.ranges.observe import Observer
from edgeq.spec import Grid


def interval(stats: Observer, spec: Grid, *, percent: float = 99.99) -> tuple[float, float]:
    """The (100 - percent) and percent quantiles, zeros included, to within a histogram bin; never beyond the extremes.

    A symmetric grid takes the percent quantile of the magnitudes instead (McKinstry et al. 2018, arXiv 1809.04191).
    """
    centres, counts = stats.bins()
    centres, counts = np.append(centres, 0.0), np.append(counts, stats.zeros)
    if spec.symmetric:
        bound = min(_quantile(np.abs(centres), counts, percent, stats.width / 2), max(-stats.low, stats.high))
        return -bound, bound
    low = 0.0 - _quantile(-centres, counts, percent, stats.width / 2)
    high = _quantile(centres, counts, percent, stats.width / 2)
    return max(low, stats.low), min(high, stats.high)


def _quantile(values: np.ndarray, counts: np.ndarray, percent: float, half: float) -> float:
    """Upper edge of the first bin up to which `percent` of the counts lie; the exact zeros' bin has no breadth."""
    order = np.argsort(values)
    below = np.cumsum(counts[order])
    at = order[min(int(np.searchsorted(below, below[-1] * percent / 100.0)), len(order) - 1)]
    return float(values[at]) + (half if at != len(values) - 1 else 0.0)
