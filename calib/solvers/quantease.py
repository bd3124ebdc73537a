"""Solver `quantease`: one weight after the other gets the code that is best while all others stay, in several sweeps.

Behdin et al. 2023, QuantEase (arXiv 2309.01885), section 3 and algorithm 1: cyclic coordinate descent on the layer's squared
error. For weight j the error is a parabola, and the point of the grid next to its lowest is the best there is, so that no step
makes it worse. Ours: sweeps begin at the codes of another rounding; they end when one changes nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import Tensor

from edgeq.calib.problem import Part, Problem
from edgeq.calib.solvers import Solver, whole
from edgeq.graph.coded import Coded

SWEEPS: Final = 25


def solver(option: str) -> Solver:
    """`quantease:N` makes N sweeps, 25 where nothing is said."""
    return Solver(partial(solve, sweeps=whole(option, SWEEPS, "quantease:25")), sums=True)


def solve(problem: Problem, start: Coded, sweeps: int = SWEEPS) -> Coded:
    """Codes anywhere on the grid."""
    rows = problem.split(start.codes.float())
    return problem.coded([_rows(p, row, problem, sweeps) for p, row in zip(problem.parts, rows, strict=True)])


def _rows(part: Part, codes: Tensor, problem: Problem, sweeps: int) -> Tensor:
    """Codes [G, R, D] of one part, better than `codes`."""
    hessian, wanted = part.quadratic(bias=problem.bias)
    codes, own = codes.clone(), hessian.diagonal(dim1=1, dim2=2)
    slope = (codes * part.scale - wanted) @ hessian
    for _ in range(sweeps):
        before = codes.clone()
        for j in range(codes.shape[-1]):
            scale = part.scale[..., j]
            best = codes[..., j] * scale - slope[..., j] / own[:, j, None]
            code = torch.round(best / scale).clamp(problem.grid.qmin, problem.grid.qmax)
            slope += ((code - codes[..., j]) * scale)[..., None] * hessian[:, None, j]
            codes[..., j] = code
        if torch.equal(before, codes):
            break
    return codes
