"""Rounding `squant`: the errors of a kernel, and of an output channel, cancel in their sum.

Neighbouring pixels are alike and activations behind a ReLU share a sign, so what the rounding of a layer adds to its
output is mostly (sum of rounding errors) × (mean input). Nearest rounding leaves that sum at random: a depthwise
kernel with large weights of both signs, as behind a network's first layer, answers with an offset. Guo et al. 2022,
SQuant (arXiv 2202.07471), sections 3.2 and 3.3: a few weights are rounded the other way, those where it costs least.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeq.calib.problem import Problem
from edgeq.calib.solvers import Solver, plain
from edgeq.graph.coded import Coded, spread
from edgeq.spec import Grid


def solver(option: str) -> Solver:
    """Takes no option."""
    return Solver(plain(solve, option, "squant"), kept=True)


def solve(problem: Problem, start: Coded) -> Coded:
    """Codes next to weight / scale, with every kernel's and then every channel's error sum within 1/2. Looks at no data.

    Weights are [C_out, C_in/groups, ...], transposed convolution with `axis` 1, linear [C_out, C_in]; one at the grid's end is
    never pushed beyond it.
    """
    spec, axis = problem.grid, problem.axis
    moved = problem.weight.detach().movedim(axis, 0)
    scale = spread(start.scale, problem.weight.shape).movedim(axis, 0).double().expand(moved.shape)
    exact = moved.double() / scale
    if spec.tile.over == "group":  # each has steps of its own, so that its errors cancel among themselves
        exact = exact.reshape(-1, spec.tile.size, *moved.shape[2:])
    exact = exact.flatten(2) if exact.dim() > 2 else exact[..., None]
    stored = torch.clamp(torch.round(exact), spec.qmin, spec.qmax)

    if exact.shape[2] > 1:
        stored -= _flips(stored - exact, stored, spec)  # each kernel: [C_out, C_in, taps]
    error = stored - exact
    of_kernel = error.sum(2)
    sign = torch.sign(of_kernel.sum(1))[:, None, None]
    tap = torch.where(_movable(error * sign, stored, sign, spec), error * sign, -torch.inf).max(2)
    chosen = _largest(of_kernel * sign[..., 0], tap.values > 0, of_kernel.sum(1).abs().round())
    stored.scatter_add_(2, tap.indices[..., None], (-sign[..., 0] * chosen)[..., None])
    codes = stored.to(start.codes.dtype).view(moved.shape).movedim(0, axis).contiguous()
    return Coded(spec, codes, start.scale, start.zero)


def _flips(error: Tensor, stored: Tensor, spec: Grid) -> Tensor:
    """What to subtract (-1, 0 or 1) so that errors along the last axis sum to within 1/2, largest errors first."""
    total = error.sum(-1, keepdim=True)
    sign = torch.sign(total)
    return sign * _largest(error * sign, _movable(error * sign, stored, sign, spec), total.abs().round()[..., 0])


def _movable(signed: Tensor, stored: Tensor, sign: Tensor, spec: Grid) -> Tensor:
    """Where one step against the error goes to the weight's other neighbour and stays on the grid."""
    target = stored - sign
    return (signed > 0) & (signed < 1) & (target >= spec.qmin) & (target <= spec.qmax)


def _largest(values: Tensor, allowed: Tensor, how_many: Tensor) -> Tensor:
    """1.0 at the `how_many` [...] largest allowed `values` [..., N] along the last axis, 0.0 elsewhere."""
    ranked = torch.where(allowed, values, -torch.inf).float()  # coarser only where values all but tie
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    taken = torch.arange(values.shape[-1]) < how_many[..., None]
    return torch.zeros_like(values).scatter_(-1, order, taken.double()) * allowed
