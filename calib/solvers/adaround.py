"""Rounding `adaround`: up or down for each weight, learned so that the layer's output error is least.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv 2004.10568), section 3.2: a weight
is floor(w/s) + h(V), h the rectified sigmoid (equation 23) between 0 and 1, and a regulariser 1 − |2h − 1|^β (equation 24)
whose β falls from 20 to 2 drives every h to an end. The paper takes the error from minibatches; here it is the same
quadratic summed over the data beforehand (edgeq.calib.gram), so every step sees all of it. Ours besides: the bias that
suits the rounding is solved for along the way, and single flips that still help are taken at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from edgeq.calib.problem import Problem
from edgeq.calib.solvers import Solver, whole
from edgeq.graph.coded import Coded

ZETA: Final = 1.1  # the rectified sigmoid's stretch, equation 23
GAMMA: Final = -0.1
BETA: Final = (20.0, 2.0)  # first and last exponent of the regulariser
FREE: Final = 0.2  # share of the steps before the regulariser sets in
RATE: Final = 3e-2  # Adam's; higher than the paper's 1e-3 since every step has the whole gradient
PULL: Final = 1.0  # the regulariser's weight where nearest rounding's error counts 1 a weight


def soften(v: Tensor) -> Tensor:
    """h(V) in [0, 1], equation 23; its gradient is 0 at the ends."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def harden(h: Tensor) -> Tensor:
    """V with soften(V) = h, for h in [0, 1]."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def beta(done: float) -> float:
    """The regulariser's exponent after a share `done` of the steps, on a cosine from 20 to 2."""
    falling = min(max(done - FREE, 0.0) / (1.0 - FREE), 1.0)
    return BETA[1] + 0.5 * (BETA[0] - BETA[1]) * (1.0 + math.cos(math.pi * falling))


STEPS: Final = 250  # where the recipe names no other number; more help little


def solver(option: str) -> Solver:
    """`adaround:N` makes N gradient steps."""
    return Solver(partial(solve, steps=whole(option, STEPS, "adaround:250")), sums=True)


def solve(problem: Problem, start: Coded, steps: int = STEPS) -> Coded:
    """Codes, each next to the real value, with no channel worse than in `start`.

    start: codes of a rounding that looks at no data; each channel takes what is best of them, of them with flips, and of what
    the gradient finds.
    """
    first = problem.split(start.codes.float())
    best, least = first, _errors(problem, first)
    for rows in (flip(problem, first), flip(problem, _descend(problem, steps))):
        error = _errors(problem, rows)
        better = error < least
        best = [
            torch.where(better[p.gram.rows.channels][..., None], new, old)
            for p, new, old in zip(problem.parts, rows, best, strict=True)
        ]
        least = torch.minimum(error, least)
    return problem.coded(best)


def _real(problem: Problem, rows: Sequence[Tensor]) -> list[Tensor]:
    return [row * p.scale for p, row in zip(problem.parts, rows, strict=True)]


def _errors(problem: Problem, rows: Sequence[Tensor]) -> Tensor:
    return problem.errors(_real(problem, rows))


def _shift(problem: Problem, rows: Sequence[Tensor]) -> Tensor:
    return problem.shift(_real(problem, rows))


def _descend(problem: Problem, steps: int) -> list[Tensor]:
    """Adam on V from h = the fraction that flooring cuts off, full gradient, then every h to its nearer end."""
    parts = problem.parts
    exact = [(p.gram.weights / p.scale - p.floor).clamp(0, 1) for p in parts]
    nearest = [p.floor + torch.round(h) * p.room for p, h in zip(parts, exact, strict=True)]
    reference = float(_errors(problem, nearest).sum()) * len(parts)
    unit = sum(h.numel() for h in exact) / max(reference, torch.finfo(torch.float32).tiny)
    variables = [harden(h.clamp(0.01, 0.99)) for h in exact]
    adam = Adam(variables, RATE)
    for step in range(steps):
        soft = [soften(v) for v in variables]
        rows = [p.floor + h * p.room for p, h in zip(parts, soft, strict=True)]
        shift, slopes = _shift(problem, rows), []
        for part, v, h, row in zip(parts, variables, soft, rows, strict=True):
            slope = part.slope(row * part.scale, shift[part.gram.rows.channels]) * (part.scale * unit) * part.room
            if step >= FREE * steps:
                slope += PULL * pull(h, beta(step / steps))
            s = torch.sigmoid(v)
            slopes.append(slope * (s - s * s) * ((h > 0) & (h < 1)))
        adam.step(slopes)
    return [p.floor + (soften(v) >= 0.5) * p.room for p, v in zip(parts, variables, strict=True)]


def pull(h: Tensor, power: float) -> Tensor:
    """Gradient of the regulariser 1 − |2h − 1|^power with respect to h."""
    side = 2 * h - 1
    return -2 * power * side.abs().pow(power - 1).copysign(side)


class Adam:
    """Kingma and Ba 2015 (arXiv 1412.6980, algorithm 1) on tensors changed in place, where autograd would cost more than
    the arithmetic."""

    def __init__(self, variables: Sequence[Tensor], rate: float) -> None:
        """Moments start at 0."""
        self.variables, self.rate, self.count = variables, rate, 0
        self.first = [torch.zeros_like(v) for v in variables]
        self.second = [torch.zeros_like(v) for v in variables]

    def step(self, slopes: Sequence[Tensor]) -> None:
        """One step down `slopes`."""
        self.count += 1
        rate = self.rate * math.sqrt(1 - 0.999**self.count) / (1 - 0.9**self.count)
        for v, g, first, second in zip(self.variables, slopes, self.first, self.second, strict=True):
            first.lerp_(g, 0.1)
            second.mul_(0.999).addcmul_(g, g, value=0.001)
            v.addcdiv_(first, second.sqrt().add_(1e-8), value=-rate)


def flip(problem: Problem, rows: Sequence[Tensor]) -> list[Tensor]:
    """Each row's best single flip between floor and ceil, again and again until none helps; the bias follows."""
    found = [r.clone() for r in rows]
    for index, part in enumerate(problem.parts):
        gram, row, share = part.gram, found[index], (1.0 / len(problem.parts) if problem.bias else 0.0)
        slope = part.slope(row * part.scale, _shift(problem, found)[gram.rows.channels])
        means = gram.inputs
        curve = (gram.quantized.diagonal(dim1=1, dim2=2) - share * means.square())[:, None]
        scale = part.scale
        least = 1e-6 * float(_errors(problem, found).mean())  # what float32 can tell from nothing
        for _ in range(row.shape[-1]):
            up = row <= part.floor
            step = torch.where(up, part.room, -1.0) * scale
            gain = torch.where(step == 0, torch.inf, step * slope + curve * step.square())
            best, at = gain.min(-1, keepdim=True)
            helps = best < -least
            if not bool(helps.any()):
                break
            step = torch.where(helps, step.gather(-1, at), 0.0)
            row.scatter_add_(-1, at, step / scale.gather(-1, at))
            group = torch.arange(len(means))[:, None]
            pair = gram.quantized[group, at[..., 0]] - share * means[group, at[..., 0]][..., None] * means[:, None]
            slope += 2 * step * pair
        row.copy_(torch.round(row))
    return found
