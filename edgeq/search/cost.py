"""What a plan will take, as far as measurements of other plans tell: each layer's time in each precision, and conversions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgeq.search.belief import Belief
from edgeq.search.solve import ENTERING, LEAVING, Linear, converted
from edgeq.search.space import Choice, Space
from edgeq.spec import LatencyReport, OpLatency

# how far what is not measured yet may lie from what is assumed, and what is measured from what it is in another plan
UNSEEN, UNIT, TOTAL = 0.5, 0.05, 0.01  # relative
LEAST = 0.002  # of a plan's total, absolute, of a unit's row
CONVERTED_MS = 5e-7  # for each value, until one was measured: a byte in, four out, at some GB/s


@dataclass(frozen=True, slots=True)
class Measured:
    """What one plan took.

    total: milliseconds, or instructions where a core is emulated. units: unit → its share as the runtime's rows tell; empty
    where it has none. inserted: of `total`, what converters put between layers.
    """

    total: float
    units: Mapping[str, float] = field(default_factory=dict)
    inserted: float = 0.0


def measured(space: Space, report: LatencyReport) -> Measured:
    """A report by units. What it has beside operators (a delegate's overhead, what is unattributed, operators that belong to no
    unit) is spread over the units as their own times are, so that a plan is the sum of its units and its conversions."""
    total, own = report.total_ms.median, {unit.name: 0.0 for unit in space.units}
    of = {key: unit for unit in space.units for key in unit.layers}
    inserted = 0.0
    for row in report.rows:
        owners = list(dict.fromkeys(of[key].name for key in row.layers if key in of))
        if row.kind == "inserted":
            inserted += row.ms
        elif row.kind == "operator" and owners:
            for name, share in _shares(space, owners, row).items():
                own[name] += share
    spent = sum(own.values())
    if spent <= 0:
        return Measured(total)
    scale = (total - inserted) / spent
    return Measured(total, {name: ms * scale for name, ms in own.items()}, inserted)


def _shares(space: Space, owners: Sequence[str], row: OpLatency) -> dict[str, float]:
    """A row's time by its owners; where there are several, by their multiply-accumulates."""
    work = {unit.name: unit.macs + 1 for unit in space.units if unit.name in owners}
    return {name: row.ms * work[name] / sum(work.values()) for name in owners}


class Costs:
    """A belief over the time of each unit in each precision, and of each border where it converts.

    Uniform plans, of which nearly all is seen, teach the units; plans that mix teach the borders, and what is not theirs teaches
    the units what they cost in other company.
    """

    def __init__(self, space: Space, uniform: Mapping[str, Measured]) -> None:
        """uniform: precision → what the plan took that has it everywhere."""
        self.space = space
        work = {unit.name: unit.macs + 1 for unit in space.units}
        whole, typical = sum(work.values()), sum(m.total for m in uniform.values()) / len(uniform)
        mean, deviation = {}, {}
        for unit in space.units:
            for name in unit.plans:
                seen = uniform.get(name)
                given = seen.units.get(unit.name) if seen is not None else None
                assumed = (seen.total if seen else typical) * work[unit.name] / whole if given is None else given
                near = UNSEEN if given is None else UNIT
                mean[_unit(unit.name, name)] = assumed
                deviation[_unit(unit.name, name)] = near * assumed + LEAST * typical
        for border in space.borders:
            for way in (ENTERING, LEAVING):
                name = _border((border.source, border.reader, way))
                mean[name] = min(border.values * CONVERTED_MS, 0.05 * typical)
                deviation[name] = mean[name] + LEAST * typical
        self.belief = Belief(mean, deviation)
        for name, seen in uniform.items():
            self.belief.observe(self._sum(space.uniform(name)), seen.total, TOTAL * seen.total)

    def predict(self, choice: Choice) -> tuple[float, float]:
        """What a plan will take, and its standard deviation."""
        return self.belief.predict(self._sum(choice))

    def learn(self, choice: Choice, seen: Measured) -> None:
        """A plan was measured."""
        for unit in self.space.units:
            if (ms := seen.units.get(unit.name)) is not None:
                self.belief.observe({_unit(unit.name, choice[unit.name]): 1.0}, ms, 2 * UNIT * ms + LEAST * seen.total)
        self.belief.observe(self._sum(choice), seen.total, TOTAL * seen.total)

    def linear(self) -> Linear:
        """As the solver takes it."""
        found = self.belief.means()
        units = {(unit.name, name): found[_unit(unit.name, name)] for unit in self.space.units for name in unit.plans}
        crossings = [(b.source, b.reader, way) for b in self.space.borders for way in (ENTERING, LEAVING)]
        return Linear(units, {crossing: found[_border(crossing)] for crossing in crossings})

    def _sum(self, choice: Choice) -> dict[str, float]:
        parts = {_unit(unit.name, choice[unit.name]): 1.0 for unit in self.space.units}
        return parts | {_border(crossing): 1.0 for crossing in converted(self.space, choice)}


class Sizes:
    """What an artefact will have in bytes: as many for each layer as the runtime stores in that precision, and a rest."""

    def __init__(self, space: Space, uniform: Mapping[str, int]) -> None:
        """uniform: precision → bytes of the artefact that has it everywhere."""
        self.space = space
        stored = {name: space.size(space.uniform(name)) for name in uniform}
        self.rest = float(max(0, min((uniform[name] - stored[name] for name in uniform), default=0)))
        self.packed = {name: max(0.0, uniform[name] - self.rest) / max(1, stored[name]) for name in uniform}

    def learn(self, choice: Choice, size: int) -> None:
        """An artefact has that many: what mixed plans have beside their weights is in the rest from now on."""
        self.rest += size - self.linear().of(self.space, choice)

    def linear(self) -> Linear:
        """As the solver takes it."""
        units = {
            (u.name, name): self.packed.get(name, 1.0) * size
            for u in self.space.units
            for name, size in u.sizes.items()
        }
        return Linear(units, rest=self.rest)


def _unit(name: str, precision: str) -> str:
    return f"{name} {precision}"


def _border(crossing: tuple[str, str, str]) -> str:
    return " > ".join(crossing)
