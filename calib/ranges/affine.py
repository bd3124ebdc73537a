"""From an interval to a grid: scale and zero point."""

from __future__ import annotations

from typing import Final

import numpy as np

from edgeq.spec import Grid, QParams

NARROWEST: Final = 2.0**-40  # smallest scale: a range below it does not matter, and ratios of scales stay in float32


def grid(low: float, high: float, spec: Grid) -> tuple[float, int]:
    """Scale (float32-representable) and zero point that cover [low, high] with 0 exactly on the grid.

    The ends are moved to 0 where they leave it out; the zero point is the nearest integer, which shifts the ends by up
    to half a step (Jacob et al. 2018, section 3.1). A symmetric grid covers the larger magnitude, zero point 0.
    An interval that is all 0 gets scale 1, anything else narrower than the kernels' arithmetic 2^-40.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    zero = 0
    if spec.symmetric:
        span, steps = max(-low, high), spec.qmax
    else:
        span, steps = high - low, spec.qmax - spec.qmin
    if span == 0.0:
        return 1.0, 0
    scale = float(np.float32(max(span / steps, NARROWEST)))
    if not spec.symmetric:
        zero = min(max(round(spec.qmin - low / scale), spec.qmin), spec.qmax)
    return scale, zero


def affine(low: float, high: float, spec: Grid, noise: float = 0.0) -> QParams:
    """`grid` as the QParams of an activation tensor; noise: the smallest scale whose steps say anything."""
    scale, zero = grid(low, high, spec)
    if scale < noise:
        scale, zero = float(np.float32(noise)), 0
    return QParams((scale,), (zero,), spec.qmin, spec.qmax)
