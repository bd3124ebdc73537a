"""Sensitivity `metric`: how far the task's own metric falls, as evaluate() measures it: over all test data for each change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from edgeq.calib.sensitivity import Kept, each
from edgeq.calib.study import Change, Study, Variant
from edgeq.spec import EdgeqError, Progress


def measure(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> list[float]:
    """The fall of the metric, in its unit; larger metrics are better.

    Raises:
        EdgeqError: the task has no evaluate(), or it returns NaN, or no number of the name that was asked for.
    """
    if study.score is None:
        raise EdgeqError(
            "sensitivity 'metric' asks the task's evaluate(), and it has none: add one to the task file, or use kl or sqnr"
        )
    base: list[float] = []

    def find(lines: Change) -> float:
        if not base:
            base.append(_score(study, study.variant, "before any layer is changed"))
        return base[0] - _score(study, study.change(lines), f"with {next(iter(lines), 'nothing')} changed")

    return each(f"metric {study.metric}", study, changes, find, progress, kept)


def _score(study: Study, variant: Variant, when: str) -> float:
    assert study.score is not None
    found = study.score(partial(study.predict, variant))
    name = next(iter(found), None) if study.metric is None else study.metric
    if name is None or name not in found:
        raise EdgeqError(f"evaluate() returned no number called {name!r}: it has {', '.join(found) or 'none'}")
    if math.isnan(found[name]):
        raise EdgeqError(f"evaluate() returned NaN as {name!r} {when}: mend evaluate(), or measure kl or sqnr")
    return float(found[name])
