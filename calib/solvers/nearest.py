"""Solver `nearest`: each weight by itself, halves to even."""

from __future__ import annotations

from edgeq.calib.problem import Problem
from edgeq.calib.solvers import Solver, plain
from edgeq.graph.coded import Coded, encode


def solver(option: str) -> Solver:
    """Takes no option."""
    return Solver(plain(solve, option, "nearest"), tables=True)


def solve(problem: Problem, start: Coded) -> Coded:
    """The nearest codes of weight / scale."""
    return encode(problem.weight, start.grid, start.scale, start.zero)
