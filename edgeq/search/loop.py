"""The closed loop: solve, try the plan where it is to run, correct what was believed, solve again."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgeq.search.belief import Belief
from edgeq.search.cost import Costs, Sizes
from edgeq.search.solve import Linear, solve
from edgeq.search.space import FLOAT, Choice, Space
from edgeq.search.trial import Trial, Trials
from edgeq.spec import EdgeqError, Progress

HARM, HEARD = (
    0.5,
    0.05,
)  # how far a layer's harm may lie from what was measured of it alone, and a plan's from its layers' sum
MARGIN = 0.005  # of a budget, left for what two measurements of one plan differ by
TIE = 1e-3  # weight of the cost beside the harm, which decides between plans that hurt alike
NARROW = 1.05  # two bounds of a bisection that are no further apart are one


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search is to find: the most accurate plan within `budget` (milliseconds or instructions) and `size` bytes, or the
    cheapest that loses at most `drop` of the metric; rounds: plans tried beside the uniform ones.

    metric: name of the one that counts; None: the first that evaluate() gives, else the outputs' error alone. lower: it is better
    the lower it is.
    """

    budget: float | None = None
    drop: float | None = None
    size: int | None = None
    metric: str | None = None
    lower: bool = False
    rounds: int = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a search found.

    best: the plan that was asked for. front: trials that no other beats in both, the cheapest first. trials: all, in the order in
    which they were made. repeated: the cost of the best one, measured once more. stable: the last solution had been measured.
    """

    best: Trial
    front: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    uniform: Mapping[str, Trial]
    repeated: float | None
    stable: bool
    costs: Costs | None = field(repr=False)
    harm: Linear = field(repr=False)

    @property
    def errors(self) -> list[float]:
        """Of each plan whose cost was predicted before it was measured: how far off that was, relative."""
        return [
            abs(t.predicted - t.cost) / t.cost
            for t in self.trials
            if t.predicted is not None and t.cost is not None and t.cost
        ]


class Search:
    """One search in one space."""

    def __init__(
        self, space: Space, trials: Trials, harms: Mapping[tuple[str, str], float], wanted: Wanted, progress: Progress
    ) -> None:
        """harms: (unit, precision) → how much this unit hurts alone there, in any unit of one scale."""
        self.space, self.trials, self.wanted, self.progress = space, trials, wanted, progress
        self.done: dict[tuple[tuple[str, str], ...], Trial] = {}
        self.failed: list[Choice] = []
        self.given, self.harms = harms, Belief({}, {})
        self.costs: Costs | None = None
        self.sizes = Sizes(space, {})
        self.uniform: dict[str, Trial] = {}

    def run(self) -> Outcome:
        """Search.

        Raises:
            DeviceLost: the device went away; the same search goes on from there. EdgeqError: no plan is within what was asked
                for, or every plan is.
        """
        self._begin()
        stable = self._within_drop() if self.wanted.drop is not None else self._within_budget()
        self._fill()
        best = self._best()
        self.progress("measure the winner again", 0, None)
        return Outcome(
            best,
            self.front(),
            tuple(self.done.values()),
            self.uniform,
            self.trials.again(best.choice),
            stable,
            self.costs,
            self.harm,
        )

    def score(self, trial: Trial) -> float:
        """How good a plan is, the higher the better: by the metric, else by the outputs' error.

        A plan is no better than float: above that it is lucky on these data, and the outputs' error decides.
        """
        name = self.metric
        if name is None or trial.metric is None:
            return -trial.noise
        sign, floating = -1.0 if self.wanted.lower else 1.0, self.uniform.get(FLOAT)
        real = self.trials.float_metric if floating is None else floating.metric
        told = sign * trial.metric[name]
        most = math.inf if real is None else sign * real[name]
        return min(told, most)

    @property
    def metric(self) -> str | None:
        """The metric that counts."""
        told = next(iter(self.done.values())).metric or {}
        return self.wanted.metric or next(iter(told), None)

    def front(self) -> tuple[Trial, ...]:
        """Trials that no other beats in cost and score, the cheapest first."""
        found: list[Trial] = []
        for trial in sorted(self.done.values(), key=lambda t: (self._price(t), -self.score(t), t.noise)):
            if not found or (self.score(trial), -trial.noise) > (self.score(found[-1]), -found[-1].noise):
                found.append(trial)
        return tuple(found)

    def _begin(self) -> None:
        """Measure the uniform plans, and ask whether there is anything to search between them."""
        for name in sorted(self.space.precisions, key=lambda name: (name != "w8a8", name != FLOAT)):
            said = f"{name} everywhere" if name != "w8a8" else "int8 everywhere"
            try:
                self.uniform[name] = self._try(self.space.uniform(name), said)
            except EdgeqError as error:
                if type(error) is not EdgeqError or name in ("w8a8", FLOAT):
                    raise
                self.progress(f"{said}: left out ({error})", 1, 1)
                self.space = self.space.without(name)
            self._check_asked()
        if all(trial.cost is not None for trial in self.uniform.values()):
            self.costs = Costs(self.space, {name: trial.measured for name, trial in self.uniform.items()})
        self.sizes = Sizes(self.space, {name: trial.size_bytes for name, trial in self.uniform.items()})
        self.harms = self._compared()
        for trial in self.uniform.values():
            self._hear(trial)
        budget, floating = self.wanted.budget, self.uniform.get(FLOAT)
        if budget is not None and floating is not None and floating.cost is not None and budget >= floating.cost:
            raise EdgeqError(
                f"the float network takes {_told(floating)}, which is within the budget of {budget:g}: there is nothing to "
                "search for; export it in fp32, or give a smaller budget"
            )

    def _compared(self) -> Belief:
        """What layers hurt, as outputs' error: sensitivities say how they compare, int8 everywhere how much it is together."""
        int8 = self.uniform.get("w8a8") or next(iter(self.uniform.values()))
        together = sum(self.given.get((unit, name), 0.0) for unit, name in int8.choice.items())
        scale = int8.noise / together if together > 0 else 1.0
        least = max(self.given.values(), default=0.0) * scale * 1e-4
        means = {_pair(*key): harm * scale for key, harm in self.given.items()}
        return Belief(means, {name: HARM * harm + least for name, harm in means.items()})

    def _check_asked(self) -> None:
        """Refuse what no plan could be judged by, as soon as one was tried."""
        if self.wanted.budget is not None and next(iter(self.uniform.values())).cost is None:
            raise EdgeqError(
                "nothing here runs its artefacts at their speed, so no time is measured: search on a device that does, or "
                "give --budget-bytes or --max-drop"
            )
        told = next(iter(self.uniform.values())).metric
        if self.wanted.metric is not None and self.wanted.metric not in (told or {}):
            there = f"evaluate() gives {', '.join(told)}" if told else "the task has no evaluate()"
            raise EdgeqError(f"--metric {self.wanted.metric}: there is none of that name; {there}")
        if self.wanted.drop is not None and (told is None or FLOAT not in self.space.precisions):
            lacks = (
                "a task with evaluate()"
                if told is None
                else f"the float network to compare with: add --precision {FLOAT}"
            )
            raise EdgeqError(f"--max-drop needs {lacks}")

    def _within_budget(self) -> bool:
        """Rounds at the budget, until it holds as measured and the plan stops changing. Returns whether it did."""
        for _ in range(self.wanted.rounds):
            choice = self._solve(self.harm, self._limits())
            if choice is None:
                self._refuse()
                return True
            known = self.done.get(_key(choice))
            if known is not None and self._holds(known):
                return True
            if known is not None:  # measured, and beyond; what is believed of it has not moved that far
                self.failed.append(choice)
                continue
            self._round(choice)
        return False

    def _within_drop(self) -> bool:
        """Bisection over how much harm is allowed: the cheapest plan for each, until one more would change nothing."""
        assert self.wanted.drop is not None
        cheapest = self._solve(self._cheap(), self._limits())
        if cheapest is None:
            self._refuse()
            return True
        low, high = 0.0, self.harm.of(self.space, cheapest)
        while len(self.done) - len(self.uniform) < self.wanted.rounds:
            allowed = low  # what is known to be allowed first: its cheapest plan changes as costs are learned
            choice = self._solve(self._cheap(), [*self._limits(), (self.harm, allowed)]) if low else None
            if choice is None or _key(choice) in self.done:
                if low and high / low < NARROW:
                    return True
                allowed = high if len(self.done) == len(self.uniform) else (low * high) ** 0.5 if low else high / 8
                choice = self._solve(self._cheap(), [*self._limits(), (self.harm, allowed)])
            if choice is None:
                low = max(low, allowed)
                continue
            trial = self.done.get(_key(choice)) or self._round(choice)
            if trial is None:
                continue
            if not self._holds(trial):
                high = allowed
                self.failed.append(choice)
            elif allowed == high:
                return True  # the cheapest of all
            else:
                low = allowed
        return False

    def _fill(self) -> None:
        """Spend what rounds are left on plans between those of the front, where its steps in cost are largest."""
        while self.costs is not None and len(self.done) < len(self.uniform) + self.wanted.rounds:
            prices = sorted(self._price(t) for t in self.front())
            steps = [(high - low, (low + high) / 2) for low, high in itertools.pairwise(prices)]
            spent = self._bytes() if self._sized else self.costs.linear()
            tried = [self._solve(self.harm, [(spent, middle)]) for _, middle in sorted(steps, reverse=True)]
            fresh = next((c for c in tried if c is not None and _key(c) not in self.done), None)
            if fresh is None:
                return
            self._round(fresh)

    def _round(self, choice: Choice) -> Trial | None:
        """Try a plan that was solved for; None where it does not lower or run, and is left out from now on."""
        expected = None if self.costs is None else self.costs.predict(choice)
        count = sum(choice[unit.name] == FLOAT for unit in self.space.units)
        done = len(self.done) - len(self.uniform)
        of = f"round {done + 1} of {self.wanted.rounds}: {count} of {len(self.space.units)} in float"
        said = of if expected is None else f"{of}, {_number(expected[0])} expected"
        try:
            trial = self._try(choice, said, expected)
        except EdgeqError as error:
            if type(error) is not EdgeqError:  # the device went away, and no other plan would fare better
                raise
            self.failed.append(choice)
            self.progress(f"{said}: left out ({error})", 1, 1)
            return None
        if self.costs is not None:
            self.costs.learn(choice, trial.measured)
        self.sizes.learn(choice, trial.size_bytes)
        self._hear(trial)
        return trial

    def _try(self, choice: Choice, said: str, expected: tuple[float, float] | None = None) -> Trial:
        self.progress(said, 0, None)
        trial = self.trials.run(choice, expected)
        self.done[_key(choice)] = trial
        named = {} if trial.metric is None else trial.metric
        metric = f", {self.metric} {named[self.metric]:.4g}" if self.metric in named else ""
        self.progress(f"{said}: {_told(trial)}{metric}", 1, 1)
        return trial

    def _hear(self, trial: Trial) -> None:
        """What a plan hurts tells what its layers do."""
        parts = {_pair(u.name, trial.choice[u.name]): 1.0 for u in self.space.units if trial.choice[u.name] != FLOAT}
        known = {name: count for name, count in parts.items() if name in self._harmful}
        if known and trial.noise > 0:
            self.harms.observe(known, trial.noise, HEARD * trial.noise)

    @property
    def _harmful(self) -> dict[str, float]:
        return self.harms.means()

    @property
    def harm(self) -> Linear:
        """What plans hurt, as it is believed now."""
        found = self._harmful
        names = [(unit.name, name) for unit in self.space.units for name in unit.plans]
        return Linear({key: found.get(_pair(*key), 0.0) for key in names})

    def _cheap(self) -> Linear:
        """What is made least where the harm is limited: the cost, else the size."""
        return self.costs.linear() if self.costs is not None else self._bytes()

    def _bytes(self) -> Linear:
        return self.sizes.linear()

    def _limits(self) -> list[tuple[Linear, float]]:
        found = []
        if self.wanted.budget is not None:
            assert self.costs is not None
            found.append((self.costs.linear(), self.wanted.budget * (1 - MARGIN)))
        if self.wanted.size is not None:
            found.append((self._bytes(), float(self.wanted.size)))
        return found

    def _solve(self, least: Linear, limits: Sequence[tuple[Linear, float]]) -> dict[str, str] | None:
        if self.costs is not None:  # of plans that hurt alike the cheapest
            least = _sum(least, self.costs.linear(), TIE)
        return solve(self.space, least, limits, self.failed)

    def _holds(self, trial: Trial) -> bool:
        """Whether a plan is within all that was asked for, as it was measured."""
        budget, size, drop = self.wanted.budget, self.wanted.size, self.wanted.drop
        if budget is not None and (trial.cost is None or trial.cost > budget):
            return False
        if size is not None and trial.size_bytes > size:
            return False
        return drop is None or self.score(self.uniform[FLOAT]) - self.score(trial) <= drop

    def _price(self, trial: Trial) -> float:
        """What is spent: the size where that alone is limited, else the cost."""
        return float(trial.size_bytes) if trial.cost is None or self._sized else trial.cost

    @property
    def _sized(self) -> bool:
        """Whether the size alone is limited."""
        return self.wanted.size is not None and self.wanted.budget is None and self.wanted.drop is None

    def _best(self) -> Trial:
        within = [trial for trial in self.done.values() if self._holds(trial)]
        if not within:
            self._refuse(tried=True)
        if self.wanted.drop is not None:
            return min(within, key=lambda t: (self._price(t), -self.score(t)))
        return max(within, key=lambda t: (self.score(t), -t.noise, -self._price(t)))

    def _refuse(self, tried: bool = False) -> None:
        """Say the least that a plan takes, where none is within the budget.

        Raises:
            EdgeqError: always, unless a plan that was measured is within it.
        """
        if not tried and any(self._holds(trial) for trial in self.done.values()):
            return
        asked = [
            *([f"{self.wanted.budget:g}"] if self.wanted.budget is not None else []),
            *([f"{self.wanted.size:,} bytes"] if self.wanted.size is not None else []),
            *([f"a drop of {self.wanted.drop:g}"] if self.wanted.drop is not None else []),
        ]
        fastest = min(self.done.values(), key=self._price)
        smallest = min(trial.size_bytes for trial in self.done.values())
        least = solve(self.space, self._cheap(), [], self.failed)
        expected = (
            self.costs.predict(least)[0] if self.costs is not None and least is not None else self._price(fastest)
        )
        raise EdgeqError(
            f"no plan is within {' and '.join(asked)}: the fastest that was measured takes {_told(fastest)}, none is expected "
            f"below {_number(expected)}, and the smallest has {smallest:,} bytes; give a larger budget, other precisions or "
            "another runtime"
        )


def repeatability(outcome: Outcome) -> float | None:
    """How far two measurements of the winner lie apart, relative."""
    if outcome.repeated is None or not outcome.best.cost:
        return None
    return abs(outcome.repeated - outcome.best.cost) / outcome.best.cost


def prediction(outcome: Outcome) -> dict[str, float | None]:
    """Median and worst relative error of predictions."""
    errors = outcome.errors
    return {"median": statistics.median(errors), "worst": max(errors)} if errors else {"median": None, "worst": None}


def _sum(a: Linear, b: Linear, weight: float) -> Linear:
    """`a`, and a little of `b`: so little that it decides between equals alone."""
    scale = weight * (max(map(abs, a.units.values()), default=0.0) or 1.0) / (sum(b.units.values()) or 1.0)
    units = {key: a.units.get(key, 0.0) + scale * b.units.get(key, 0.0) for key in {**a.units, **b.units}}
    borders = {key: a.borders.get(key, 0.0) + scale * b.borders.get(key, 0.0) for key in {**a.borders, **b.borders}}
    return Linear(units, borders, a.rest)


def _told(trial: Trial) -> str:
    if trial.latency_ms is not None:
        return f"{trial.latency_ms:.3g} ms"
    return f"{trial.instructions:,} instructions" if trial.instructions is not None else f"{trial.size_bytes:,} bytes"


def _number(value: float) -> str:
    return f"{value:.3g} ms" if value < 1e5 else f"{value:,.0f}"


def _pair(unit: str, precision: str) -> str:
    return f"{unit} {precision}"


def _key(choice: Choice) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(choice.items()))
