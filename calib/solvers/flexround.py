"""Solver `flexround`: every weight is divided by a factor of its own before it is rounded, and the factors are learned.

Lee et al. 2023, FlexRound (arXiv 2306.00317), section 3.2, equation 2: Ŵ = s₁ · ⌊W / (s₁ ⊙ S₂ ⊙ s₃)⌉ with S₂ of the weight's
shape and s₃ one number a channel, all positive, 1 at the start; rounding passes its gradient on unchanged. Large weights move
further than small ones for the same step of a factor (proposition 3.1). Ours: the error is the quadratic of edgeq.calib.gram,
so that each step sees all data; factors are learned by their logarithms, which keeps them positive; a convolution's fourth
factor, of input channels, is left out, as S₂ holds it.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import Tensor

from edgeq.calib.problem import Problem
from edgeq.calib.solvers import Solver, whole
from edgeq.graph.coded import Coded, spread
from edgeq.graph.ordered import parted

STEPS: Final = 400
RATE: Final = 4e-3  # of the factors' logarithms


def solver(option: str) -> Solver:
    """`flexround:N` makes N gradient steps, 400 where nothing is said."""
    return Solver(partial(solve, steps=whole(option, STEPS, "flexround:400")), sums=True)


@parted(1)
def solve(problem: Problem, start: Coded, steps: int = STEPS) -> Coded:
    """Codes and scales, those with the least error seen on the way, channel by channel."""
    weight, shape, axis = problem.weight.detach(), problem.weight.shape, problem.axis
    own, channel, step = (
        torch.zeros(s).requires_grad_()
        for s in (shape, [n if i == axis else 1 for i, n in enumerate(shape)], start.scale.shape)
    )
    adam = torch.optim.Adam([own, channel, step], RATE)
    best, least = start, _errors(problem, start.decode())
    unit = 1.0 / float(least.detach().sum().clamp(min=torch.finfo(torch.float32).tiny))
    for _ in range(steps):
        with torch.enable_grad():
            scale = start.scale * step.exp()
            wide = spread(scale, shape)
            exact = weight / (wide * (own + channel).exp())
            codes = (exact + (torch.round(exact) - exact).detach()).clamp(start.grid.qmin, start.grid.qmax)
            errors = _errors(problem, codes * wide)
            adam.zero_grad()
            (errors.sum() * unit).backward()  # type: ignore[no-untyped-call] # torch's
        found = Coded(start.grid, codes.detach().to(start.codes.dtype), scale.detach(), start.zero)
        best, least = problem.better(best, least, found, errors.detach())
        adam.step()
    return best


def _errors(problem: Problem, weight: Tensor) -> Tensor:
    return problem.errors(problem.split(weight))
