"""Solver `comq`: codes one by one, and after each sweep the scale that suits them.

Zhang et al. 2024, COMQ (arXiv 2403.07134), section 3 and algorithm 2: the layer's squared error is a quadratic of each code
and of each channel's scale while all else stays, so that both have a best value in closed form; codes go in the order of the
size of their inputs, largest first. Ours: the quadratic is of the inputs that the quantized network gives
(edgeq.calib.problem); the order is one for all channels, as the sweep then goes over them together; scales of groups stay.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import Tensor

from edgeq.calib.problem import Problem
from edgeq.calib.solvers import Solver, whole
from edgeq.graph.coded import Coded, along, spread
from edgeq.graph.ordered import parted

SWEEPS: Final = 4  # as in the paper's experiments; more change little


def solver(option: str) -> Solver:
    """`comq:N` makes N sweeps, 4 where nothing is said."""
    return Solver(partial(solve, sweeps=whole(option, SWEEPS, "comq:4")), sums=True)


@parted(1)
def solve(problem: Problem, start: Coded, sweeps: int = SWEEPS) -> Coded:
    """Codes anywhere on the grid, and scales by channel."""
    quadratics = [part.quadratic(bias=problem.bias) for part in problem.parts]
    rows, scale = problem.split(start.codes.float()), start.scale
    for _ in range(sweeps):
        steps = problem.split(spread(scale, problem.weight.shape).expand_as(problem.weight))
        rows = [
            _sweep(hessian, wanted, codes.clone(), step, problem)
            for (hessian, wanted), codes, step in zip(quadratics, rows, steps, strict=True)
        ]
        if scale.numel() == problem.channels:
            scale = _refitted(problem, quadratics, rows, scale)
    return Coded(start.grid, problem.join(rows, start.codes), scale, start.zero)


def _sweep(hessian: Tensor, wanted: Tensor, codes: Tensor, step: Tensor, problem: Problem) -> Tensor:
    """Each code [G, R, D] once to where the error is least, in place."""
    own = hessian.diagonal(dim1=1, dim2=2)
    slope = (codes * step - wanted) @ hessian
    for j in own.sum(0).argsort(descending=True, stable=True).tolist():
        best = codes[..., j] * step[..., j] - slope[..., j] / own[:, j, None]
        code = torch.round(best / step[..., j]).clamp(problem.grid.qmin, problem.grid.qmax)
        slope += ((code - codes[..., j]) * step[..., j])[..., None] * hessian[:, None, j]
        codes[..., j] = code
    return codes


def _refitted(problem: Problem, quadratics: list[tuple[Tensor, Tensor]], rows: list[Tensor], scale: Tensor) -> Tensor:
    """For each channel the scale s with the least error of s times its codes."""
    along_codes, across = torch.zeros(problem.channels), torch.zeros(problem.channels)
    for part, (hessian, wanted), codes in zip(problem.parts, quadratics, rows, strict=True):
        channels = part.gram.rows.channels.reshape(-1)
        pushed = codes @ hessian
        along_codes.index_add_(0, channels, (pushed * wanted).sum(-1).reshape(-1))
        across.index_add_(0, channels, (pushed * codes).sum(-1).reshape(-1))
    found = along(along_codes / across, problem.axis, scale.dim())
    return torch.where(found.isfinite() & (found > 0), found, scale)
