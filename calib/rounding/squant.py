"""Rounding `squant`: the errors of a kernel, and of an output channel, cancel in their sum.

Neighbouring pixels are alike and activations behind a ReLU share a sign, so what the rounding of a layer adds to its
output is mostly (sum of rounding errors) × (mean input). Nearest rounding leaves that sum at random: a depthwise
kernel with large weights of both signs, as behind a network's first layer, answers with an offset. Guo et al. 2022,
SQuant (arXiv 2202.07471), sections 3.2 and 3.3: a few weights are rounded the other way, those where it costs least.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeq.calib.rounding import nearest
from edgeq.spec import QuantSpec


def integers(weight: Tensor, scales: Tensor, axis: int, spec: QuantSpec) -> Tensor:
    """Integers next to weight / scale along `axis`, with every kernel's and then every channel's error sum within 1/2.

    Takes no data. Returns int8 in the shape of `weight` ([C_out, C_in/groups, ...], transposed convolution with
    `axis` 1, linear [C_out, C_in]), clipped to [qmin, qmax]; a weight at the grid's end is never pushed beyond it.
    """
    moved = weight.detach().movedim(axis, 0)
    exact = (moved.flatten(2) if moved.dim() > 2 else moved[..., None]).double() / scales.double()[:, None, None]
    stored = nearest.integers(exact, torch.ones_like(scales), 0, spec).double()

    if exact.shape[2] > 1:
        stored -= _flips(stored - exact, stored, spec)  # each kernel: [C_out, C_in, taps]
    error = stored - exact
    of_kernel = error.sum(2)
    sign = torch.sign(of_kernel.sum(1))[:, None, None]
    tap = torch.where(_movable(error * sign, stored, sign, spec), error * sign, -torch.inf).max(2)
    chosen = _largest(of_kernel * sign[..., 0], tap.values > 0, of_kernel.sum(1).abs().round())
    stored.scatter_add_(2, tap.indices[..., None], (-sign[..., 0] * chosen)[..., None])
    return stored.to(torch.int8).view(moved.shape).movedim(0, axis).contiguous()


def _flips(error: Tensor, stored: Tensor, spec: QuantSpec) -> Tensor:
    """What to subtract (-1, 0 or 1) so that errors along the last axis sum to within 1/2, largest errors first."""
    total = error.sum(-1, keepdim=True)
    sign = torch.sign(total)
    return sign * _largest(error * sign, _movable(error * sign, stored, sign, spec), total.abs().round()[..., 0])


def _movable(signed: Tensor, stored: Tensor, sign: Tensor, spec: QuantSpec) -> Tensor:
    """Where one step against the error goes to the weight's other neighbour and stays on the grid."""
    target = stored - sign
    return (signed > 0) & (signed < 1) & (target >= spec.qmin) & (target <= spec.qmax)


def _largest(values: Tensor, allowed: Tensor, how_many: Tensor) -> Tensor:
    """1.0 at the `how_many` [...] largest allowed `values` [..., N] along the last axis, 0.0 elsewhere."""
    ranked = torch.where(allowed, values, -torch.inf).float()  # coarser only where values all but tie
    order = ranked.argsort(dim=-1, descending=True, stable=True)
    taken = torch.arange(values.shape[-1]) < how_many[..., None]
    return torch.zeros_like(values).scatter_(-1, order, taken.double()) * allowed
