"""Range method `moving-average`: the extremes of a usual batch, so that one odd batch does not set the scale."""

from __future__ import annotations

from edgeq.calib.ranges.observe import Observer
from edgeq.spec import Grid


def interval(stats: Observer, spec: Grid) -> tuple[float, float]:
    """Moving averages of the per-batch extremes (Jacob et al. 2018, arXiv 1712.05877, section 3.1)."""
    return stats.average_low, stats.average_high
