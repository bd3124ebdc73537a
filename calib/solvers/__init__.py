"""Solvers: which codes a layer's weights get. One file each; `solver` finds one by the name that a recipe uses.

A file here has `solver(option)`, which reads what stands behind the colon of its name and returns a Solver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from edgeq.spec import EdgeqError

if TYPE_CHECKING:
    from edgeq.calib.problem import Problem
    from edgeq.graph.coded import Coded

Solve = Callable[["Problem", "Coded"], "Coded"]


@dataclass(frozen=True, slots=True)
class Solver:
    """`solve(problem, start)` gives codes for a layer, and scales where it moves them too. sums: it reads sums over the data.
    tables: it takes codes that stand for a table's values; others reckon with neighbouring integers. kept: what it finds without
    data is worth keeping for another plan that begins alike.

    Whoever calls it keeps, channel by channel, what the problem's error says is better.
    """

    solve: Solve
    sums: bool = False
    tables: bool = False
    kept: bool = False


def names() -> list[str]:
    """The solvers there are."""
    return sorted(found.name for found in iter_modules(__path__))


def solver(text: str) -> Solver:
    """The solver `text` names, as `squant` or `adaround:40`, with its option behind a colon.

    Raises:
        EdgeqError: there is no such solver, or it takes no such option.
    """
    name, _, option = text.partition(":")
    if name not in names():
        raise EdgeqError(f"unknown solver {text!r}: use {', '.join(names())}")
    made: Solver = import_module(f"{__name__}.{name}").solver(option)
    return made


def plain(solve: Solve, option: str, name: str) -> Solve:
    """`solve`, of a solver that takes no option.

    Raises:
        EdgeqError: there is one.
    """
    if option:
        raise EdgeqError(f"solver {name!r} takes no option, and was given {option!r}")
    return solve


def whole(option: str, default: int, example: str) -> int:
    """An option that is a whole number above 0; `default` where there is none.

    Raises:
        EdgeqError: it is something else.
    """
    if not option:
        return default
    if not option.isdecimal() or int(option) == 0:
        raise EdgeqError(f"a solver's option {option!r} is no whole number above 0: write it as {example}")
    return int(option)
