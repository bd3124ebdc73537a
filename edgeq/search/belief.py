"""Numbers that are known roughly, and better with every sum of them that is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np


class Belief:
    """A Gaussian over named numbers, updated by measured sums of them.

    The update is Kalman's ("A New Approach to Linear Filtering and Prediction Problems", 1960) without a motion: least squares
    with what was believed before as further equations, so that what no measurement touches stays as it was.
    """

    def __init__(self, mean: Mapping[str, float], deviation: Mapping[str, float]) -> None:
        """What is believed before anything was measured; both by name, in one unit."""
        self._at = {name: index for index, name in enumerate(mean)}
        self._mean = np.array([*mean.values()], np.float64)
        self._covariance = np.diag(np.square([deviation[name] for name in mean]))

    def observe(self, sum_of: Mapping[str, float], value: float, deviation: float) -> None:
        """A sum (name → how often) was measured as `value`, within `deviation`."""
        row = self._row(sum_of)
        spread = self._covariance @ row
        gain = spread / (row @ spread + deviation**2)
        self._mean += gain * (value - row @ self._mean)
        self._covariance -= np.outer(gain, spread)

    def predict(self, sum_of: Mapping[str, float]) -> tuple[float, float]:
        """Mean and standard deviation of a sum."""
        row = self._row(sum_of)
        return float(row @ self._mean), math.sqrt(max(0.0, float(row @ self._covariance @ row)))

    def means(self) -> dict[str, float]:
        """What each number is believed to be; none below 0, as costs and errors are."""
        return {name: max(0.0, float(self._mean[index])) for name, index in self._at.items()}

    def _row(self, sum_of: Mapping[str, float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        row = np.zeros(len(self._at))
        for name, count in sum_of.items():
            row[self._at[name]] += count
        return row
