"""Solver `gptq`: column by column, what rounding one weight costs is made up for by those that are still free.

Frantar et al. 2023, GPTQ (arXiv 2210.17323), section 3, equation 2 and algorithm 1: with H the second moments of the layer's
inputs and U the upper Cholesky factor of H⁻¹, weight j is rounded and the later ones move by −(w_j − q_j) · U[j, j:] / U[j, j].
`act-order` takes the columns with the largest inputs first, an option of the authors' code. Ours: H is of the inputs that the
quantized network gives, the weights to be reached are those of least error there, and a bias that moves along takes the
inputs' means out of both (edgeq.calib.problem).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from edgeq.calib.problem import Part, Problem
from edgeq.calib.solvers import Solver
from edgeq.graph.coded import Coded
from edgeq.spec import EdgeqError

COLUMNS = (
    128  # that move each other at once; what lies behind them moves once a block (section 3.3, "lazy batch-updates")
)


def solver(option: str) -> Solver:
    """`gptq`, or `gptq:act-order`.

    Raises:
        EdgeqError: another option.
    """
    if option not in ("", "act-order"):
        raise EdgeqError(f"solver 'gptq' takes no option {option!r}: write gptq or gptq:act-order")
    return Solver(partial(solve, act_order=bool(option)), sums=True)


def solve(problem: Problem, start: Coded, *, act_order: bool = False) -> Coded:
    """Codes anywhere on the grid; the start gives grid and scales alone."""
    return problem.coded([_rows(part, problem, act_order=act_order) for part in problem.parts])


def _rows(part: Part, problem: Problem, *, act_order: bool) -> Tensor:
    """Codes [G, R, D] of one part."""
    hessian, weights = part.quadratic(bias=problem.bias)
    width = weights.shape[-1]
    order = torch.arange(width).expand(len(weights), -1)
    if act_order:
        order = hessian.diagonal(dim1=1, dim2=2).argsort(dim=-1, descending=True, stable=True)
    columns = order[:, None].expand_as(weights)
    weights, scale = weights.gather(-1, columns), part.scale.gather(-1, columns)
    group = torch.arange(len(weights))[:, None, None]
    hessian = hessian[group, order[:, :, None], order[:, None]]
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(hessian.double())
    )  # float32 loses what many like inputs leave
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    codes = torch.empty_like(weights)
    for first in range(0, width, COLUMNS):
        last = min(first + COLUMNS, width)
        errors = torch.empty_like(weights[..., first:last])
        for j in range(first, last):
            codes[..., j] = torch.round(weights[..., j] / scale[..., j]).clamp(problem.grid.qmin, problem.grid.qmax)
            error = (weights[..., j] - codes[..., j] * scale[..., j]) / factor[:, j, j, None]
            weights[..., j:last] -= error[..., None] * factor[:, None, j, j:last]
            errors[..., j - first] = error
        weights[..., last:] -= errors @ factor[:, first:last, last:]
    return torch.empty_like(codes).scatter_(-1, columns, codes)
