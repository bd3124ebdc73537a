"""What each unit hurts alone: the network in float but for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, MutableMapping
from functools import partial
from pathlib import Path

from edgeq.backends import Predict
from edgeq.calib.sensitivity import measure
from edgeq.calib.steps.ranges import Ranges
from edgeq.calib.study import Study
from edgeq.run.kept import Kept
from edgeq.run.metric import evaluate
from edgeq.search.bench import FRAMES, Bench
from edgeq.search.space import FLOAT, Space
from edgeq.spec import Progress, Recipe
from edgeq.task import hook

Harms = dict[tuple[str, str], float]  # (unit, precision) → how much, by one measure


def harms(bench: Bench, space: Space, name: str, metric: str | None, folder: Path, progress: Progress) -> Harms:
    """How much each unit in each precision hurts alone, by the sensitivity called `name` (edgeq.calib.sensitivity).

    What was finished is kept in `folder`. Raises EdgeqError: there is no such measure, or the task lacks what it asks for.
    """
    study = Study(
        bench.captured, bench.target, _settled(bench.recipe), bench.batches, frames=FRAMES, statistics=bench.statistics,
        hook=partial(hook, bench.task), score=None if bench.task.evaluate is None else partial(_score, bench), metric=metric,
    )  # fmt: skip
    pairs = [(unit.name, p, lines) for unit in space.units for p, lines in unit.plans.items() if p != FLOAT]
    found = measure(name, study, [lines for _, _, lines in pairs], progress, _Stored(folder / "harms"))
    return {(unit, p): max(0.0, harm) for (unit, p, _), harm in zip(pairs, found, strict=True)}


def _settled(recipe: Recipe) -> Recipe:
    """The recipe with the first of several range methods: how layers compare is asked here, and each plan chooses anew."""
    steps = [
        dataclasses.replace(step, method=step.method.split(",")[0]) if isinstance(step, Ranges) else step
        for step in recipe.steps
    ]
    return dataclasses.replace(recipe, steps=tuple(steps))


def _score(bench: Bench, predict: Predict) -> dict[str, float]:
    """The metric of one change; the larger the better, as a sensitivity takes it."""
    sign = -1.0 if bench.lower else 1.0
    return {name: sign * value for name, value in (evaluate(bench.task, predict) or {}).items()}


class _Stored(MutableMapping[str, float]):
    """Numbers by name, each in a file of its own as soon as it is known."""

    def __init__(self, folder: Path) -> None:
        self.kept = Kept(folder)

    def __getitem__(self, key: str) -> float:
        found = self.kept.get(key, key)
        if found is None:
            raise KeyError(key)
        return float(found["harm"])

    def __setitem__(self, key: str, value: float) -> None:
        self.kept.keep(key, key, {"harm": value})

    def __delitem__(self, key: str) -> None:
        (self.kept.folder / f"{key}.json").unlink()

    def __iter__(self) -> Iterator[str]:
        return iter(file.stem for file in self.kept.folder.glob("*.json"))

    def __len__(self) -> int:
        return sum(1 for _ in self)
