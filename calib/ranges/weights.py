"""Per-channel symmetric scales of weights: min-max, or the least squared error per channel."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from edgeq.graph.coded import encode
from edgeq.spec import EdgeqError, Grid

METHODS: Final = ("minmax", "mse")
SMALLEST: Final = 0.3  # smallest share of the extreme that `mse` tries; at 2 bits the optimum lies near half
STEPS: Final = 71  # hundredths from SMALLEST to 1
FEW: Final = 4  # weights of a channel that say whether it may lie on a grid
ON_GRID: Final = 1e-3  # of a step: more than float32 loses, less than chance leaves
DEAD: Final = 2.0**-16  # a channel's scale is at least this share of the layer's largest


def scales(w: Tensor, axis: int, spec: Grid, method: str) -> Tensor:
    """Scales of weights `w`, output channels along `axis`: of its channels, float32 [C], or of its groups, in the weight's rank,
    [C, K/32] or, of a convolution, [C, K/32, 1, 1]. As `channel_scales`.
    """
    if spec.tile.over != "group":
        return channel_scales(w, axis, spec, method)
    rows = groups(w, axis, spec.tile.size)
    found = channel_scales(rows.flatten(1), 0, spec, method)
    return found.view(w.shape[axis], -1, *[1] * (w.dim() - 2)).movedim(0, axis)


def groups(w: Tensor, axis: int, size: int) -> Tensor:
    """Weights as rows of `size` neighbouring inputs of one output channel, [C · K / size, size, ...]."""
    moved = w.movedim(axis, 0)
    return moved.reshape(-1, size, *moved.shape[2:])


def channel_scales(w: Tensor, axis: int, spec: Grid, method: str) -> Tensor:
    """Scales float32 [C] of weights `w` along `axis`, whose largest lands on the grid's largest value.

    Dead channels (all 0, or weights that BatchNorm folding shrank to nothing) get 2^-16 of the layer's largest scale,
    so that a bias in units of input scale × weight scale still fits an int32; an all-zero layer gets 1.

    Raises:
        EdgeqError: `method` is not a weight range method, or a weight is NaN or Inf.
    """
    if method not in METHODS:
        raise EdgeqError(f"unknown weight range method {method!r}: use {' or '.join(METHODS)}")
    rows = w.detach().movedim(axis, 0).flatten(1).float()
    most = largest_integers(rows, spec) if spec.table is None else torch.tensor(spec.reach)
    scales = rows.abs().amax(1) / most
    if not bool(torch.isfinite(scales).all()):
        raise EdgeqError("weights hold NaN or Inf: load a sound checkpoint")
    if not bool(scales.any()):
        return torch.ones_like(scales)
    scales = scales.clamp(min=float(scales.max()) * DEAD)
    return _least_error(rows, scales, spec) if method == "mse" else scales


def largest_integers(rows: Tensor, spec: Grid) -> Tensor:
    """For each row of [C, N] the integer its largest weight gets, float32 [C]: qmax, or less where that fits exactly.

    Weights that were trained or stored as integers lie on a grid already. One whose largest integer is 92, say, spread
    over 127 steps would be rounded all over again; on its own grid nothing is.
    """
    most = rows.abs().amax(1, keepdim=True)
    most = torch.where(most > 0, most, 1.0)
    steps = torch.arange(spec.qmax, 0, -1, dtype=torch.float32)
    few = rows[:, :: -(-rows.shape[1] // FEW)] / most
    fits = _off_grid(few[:, None] * steps[:, None]).amax(2) < ON_GRID
    found = torch.full((len(rows),), float(spec.qmax))
    for row in fits.any(1).nonzero()[:, 0].tolist():  # hardly any but those that lie on a grid
        likely = steps[fits[row]]
        whole = _off_grid(rows[row] / most[row] * likely[:, None]).amax(1) < ON_GRID
        if bool(whole.any()):
            found[row] = likely[whole.byte().argmax()]
    return found


def _off_grid(x: Tensor) -> Tensor:
    """Distance to the nearest integer."""
    return (x - x.round()).abs()


def _least_error(rows: Tensor, full: Tensor, spec: Grid) -> Tensor:
    """For each row of [C, N], the share of its full scale [C] with the least squared rounding and clipping error."""
    best, scales = torch.full_like(full, torch.inf), full.clone()
    for share in torch.linspace(1.0, SMALLEST, STEPS):
        scale = full * share
        error = (encode(rows, spec, scale[:, None]).decode() - rows).square().sum(1)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, scale, scales)
    return scales
