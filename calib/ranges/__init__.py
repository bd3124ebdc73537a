"""Range methods: which interval a tensor gets. `method` finds one by the name a recipe uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from edgeq.calib.ranges import entropy, minmax, moving_average, mse, percentile
from edgeq.calib.ranges.observe import Observer
from edgeq.spec import EdgeqError, Grid

Interval = Callable[[Observer, Grid], tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Method:
    """A range method; call it as `interval(stats, spec)` for real numbers (low, high).

    needs_histogram: its observers must be made with `histogram=True`.
    """

    interval: Interval
    needs_histogram: bool

    def __call__(self, stats: Observer, spec: Grid) -> tuple[float, float]:
        """The interval of the tensor that `stats` observed, on a grid of `spec`."""
        return self.interval(stats, spec)


METHODS: Final[dict[str, Method]] = {
    "minmax": Method(minmax.interval, needs_histogram=False),
    "moving-average": Method(moving_average.interval, needs_histogram=False),
    "percentile": Method(percentile.interval, needs_histogram=True),
    "mse": Method(mse.interval, needs_histogram=True),
    "entropy": Method(entropy.interval, needs_histogram=True),
    "entropy:nonzero": Method(partial(entropy.interval, nonzero=True), needs_histogram=True),
}


def method(text: str) -> Method:
    """The range method `text` names; `percentile:P` sets its percentage, 50 < P <= 100.

    Raises:
        EdgeqError: there is no such method or option.
    """
    if text in METHODS:
        return METHODS[text]
    name, _, option = text.partition(":")
    if name == "percentile":
        try:
            percent = float(option)
        except ValueError:
            percent = 0.0
        if not 50.0 < percent <= 100.0:
            raise EdgeqError(
                f"range method {text!r} needs a percentage above 50 and up to 100, such as percentile:99.99"
            )
        return Method(partial(percentile.interval, percent=percent), needs_histogram=True)
    raise EdgeqError(
        f"unknown range method {text!r}: use {', '.join(METHODS)} or percentile:P, such as percentile:99.9"
    )
