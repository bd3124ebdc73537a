"""Range method `mse`: the interval whose grid distorts the observed values least, found by search on the histogram."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeq.calib.ranges.affine import grid
from edgeq.calib.ranges.observe import Observer
from edgeq.spec import Grid

Floats = NDArray[np.float64]

STEPS = 16  # candidates for each end in one round; the smallest covers 1/STEPS of the full range
ROUNDS = 3  # each later round looks closer around the best of the round before


def interval(stats: Observer, spec: Grid) -> tuple[float, float]:
    """The interval of least mean squared quantization error: both ends searched, one magnitude for a symmetric grid.

    The optimum Banner et al. 2019 (arXiv 1810.05723, section 3) derive from a Laplace model, here found on the data.
    Zeros cost nothing whatever the grid, since 0 is always on it.
    """
    centres, counts = stats.bins()
    if not len(centres):
        return 0.0, 0.0
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    if spec.symmetric:
        low, high = -max(-low, high), max(-low, high)
    free = (low < 0.0 and not spec.symmetric, high > 0.0)

    centre, reach = np.ones(2), 1.0 - 1.0 / STEPS
    for _ in range(ROUNDS):
        shares = [
            np.linspace(max(c - reach, 1.0 / STEPS), min(c + reach, 1.0), STEPS) if f else np.ones(1)
            for c, f in zip(centre, free, strict=True)
        ]
        above, below = (ends.ravel() for ends in np.meshgrid(shares[1], shares[0]))
        if spec.symmetric:
            below = above
        best = int(np.argmin(_errors(centres, counts, low * below, high * above, spec)))
        centre, reach = np.array([below[best], above[best]]), 2.0 * reach / (STEPS - 1)
    return float(low * centre[0]), float(high * centre[1])


def _errors(values: Floats, counts: Floats, low: Floats, high: Floats, spec: Grid) -> Floats:
    """Summed squared quantization error of each candidate interval [low, high], arrays [K]."""
    errors = np.empty(len(low))
    for k in range(len(low)):  # one candidate at a time keeps the working set in the cache
        scale, zero = grid(float(low[k]), float(high[k]), spec)
        stored = np.rint(values * (1.0 / scale))
        np.clip(stored, spec.qmin - zero, spec.qmax - zero, out=stored)
        stored *= scale
        stored -= values
        errors[k] = counts @ np.square(stored, out=stored)
    return errors
