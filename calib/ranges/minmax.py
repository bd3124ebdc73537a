"""Range method `minmax`: everything ever seen is representable; nothing is clipped."""

from __future__ import annotations

from edgeq.calib.ranges.observe import Observer
from edgeq.spec import Grid


def interval(stats: Observer, spec: Grid) -> tuple[float, float]:
    """The exact extremes of the calibration data."""
    return stats.low, stats.high
