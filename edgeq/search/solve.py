"""The cheapest choice within limits: an integer linear program, solved exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from edgeq.search.space import Choice, Space
from edgeq.spec import EdgeqError

GAP = 1e-4  # of the best: how far from it a solution may be
ENTERING, LEAVING = "quantize", "dequantize"  # what stands at a border whose source, or whose reader, is in float


@dataclass(frozen=True, slots=True)
class Linear:
    """A quantity that adds up: over units by their precision, over borders by which end is in integers, and a rest.

    units: (unit, precision) → amount. borders: (source, reader, ENTERING or LEAVING) → amount.
    """

    units: Mapping[tuple[str, str], float]
    borders: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    rest: float = 0.0

    def of(self, space: Space, choice: Choice) -> float:
        """Its amount for a choice."""
        found = self.rest + sum(self.units.get((unit.name, choice[unit.name]), 0.0) for unit in space.units)
        return found + sum(self.borders.get(border, 0.0) for border in converted(space, choice))


def converted(space: Space, choice: Choice) -> list[tuple[str, str, str]]:
    """The borders at which a choice has integers made of floats, or floats of integers."""
    inside = {unit.name: choice[unit.name] in unit.integers for unit in space.units}
    return [
        (border.source, border.reader, LEAVING if inside[border.source] else ENTERING)
        for border in space.borders
        if inside[border.source] != inside[border.reader]
    ]


def solve(
    space: Space, least: Linear, limits: Sequence[tuple[Linear, float]], without: Sequence[Choice] = ()
) -> dict[str, str] | None:
    """The choice of least `least` for which every quantity of `limits` stays within its bound; None where there is none.

    without: choices that are left out. Solved by branch and cut (HiGHS: Huangfu and Hall, "Parallelizing the dual revised
    simplex method", 2018) to within GAP of the best; the same question gives the same answer.

    Raises:
        EdgeqError: scipy is not installed, or the solver gives up.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
    except ImportError as error:
        raise EdgeqError("a search needs scipy: pip install 'edgeq[search]'") from error

    pairs = [(unit.name, name) for unit in space.units for name in unit.plans]
    crossings = [(b.source, b.reader, way) for b in space.borders for way in (ENTERING, LEAVING)]
    at: dict[tuple[str, ...], int] = {key: index for index, key in enumerate((*pairs, *crossings))}
    rows = _structure(space, at)
    for quantity, bound in limits:
        amounts = {at[key]: v for key, v in (*quantity.units.items(), *quantity.borders.items()) if key in at}
        largest = max(map(abs, amounts.values()), default=0.0) or 1.0
        scaled = {column: amount / largest for column, amount in amounts.items()}
        rows.append(_Row(scaled, -np.inf, (bound - quantity.rest) / largest))
    for choice in without:
        rows.append(_Row({at[u.name, choice[u.name]]: 1.0 for u in space.units}, -np.inf, len(space.units) - 1))

    goal = np.zeros(len(at))
    for key, amount in (*least.units.items(), *least.borders.items()):
        if key in at:
            goal[at[key]] = amount
    found = milp(
        goal / (np.abs(goal).max() or 1.0),
        integrality=np.array([1] * len(pairs) + [0] * len(crossings)),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(_matrix(rows, len(at)), [row.low for row in rows], [row.high for row in rows]),
        options={"mip_rel_gap": GAP},
    )
    if found.status == 2:
        return None
    if found.x is None:
        raise EdgeqError(f"the integer program of the search could not be solved: {found.message}")
    return {unit.name: max(unit.plans, key=lambda name: found.x[at[unit.name, name]]) for unit in space.units}


class _Row(NamedTuple):
    """Of the program's constraints: column → amount, and the bounds of their sum."""

    amounts: dict[int, float]
    low: float
    high: float


def _structure(space: Space, at: Mapping[tuple[str, ...], int]) -> list[_Row]:
    """One precision for each unit; a border converts where one end is in integers and the other is not."""
    rows = [_Row({at[unit.name, name]: 1.0 for name in unit.plans}, 1, 1) for unit in space.units]
    integers = {unit.name: {at[unit.name, name] for name in unit.integers} for unit in space.units}
    for border in space.borders:
        for way, sign in ((ENTERING, 1.0), (LEAVING, -1.0)):
            ends = dict.fromkeys(integers[border.reader], sign) | dict.fromkeys(integers[border.source], -sign)
            rows.append(_Row({**ends, at[border.source, border.reader, way]: -1.0}, -np.inf, 0))
    return rows


def _matrix(rows: Sequence[_Row], columns: int) -> Any:
    """The constraints as scipy takes them: one row each."""
    from scipy.sparse import csr_array

    entries = [(amount, index, column) for index, row in enumerate(rows) for column, amount in row.amounts.items()]
    amounts, indices, places = zip(*entries, strict=True)
    return csr_array((amounts, (indices, places)), shape=(len(rows), columns))
