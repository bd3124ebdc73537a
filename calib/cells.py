"""How much a cell of a map counts where errors are compared: those of a sparse map are empty for the most part."""

from __future__ import annotations

import torch
from torch import Tensor


def cell_mass(output: Tensor, step: float) -> Tensor:
    """Weight of each output cell [N, ...] of the float value `output` [N, C, ...], for sparse maps.

    A cell is empty where no channel departs from the frame's commonest value by more than half a quantization `step`: 0
    on the input of a sparse network, and behind a layer with a bias whatever that layer answers to nothing. Occupied
    cells count 1; empty ones share as much mass as the occupied have together, and never more than 1 each. All of it is
    ours: Zhou et al. 2024 (LiDAR-PTQ, arXiv 2401.15865, section 3.2) note that zeros drown the rest and stop there.
    """
    if output.dim() < 3:
        return torch.ones(output.shape[:1] if output.dim() else ())
    flat = output.flatten(2)
    common = flat.median(2, keepdim=True).values
    occupied = ((flat - common).abs() > step / 2).any(1)
    count = occupied.sum(1, keepdim=True).float()
    empty = (count / (occupied.shape[1] - count).clamp(min=1)).clamp(max=1.0)
    return torch.where(occupied, 1.0, empty).view(output.shape[0], *output.shape[2:])


def relative_error(found: Tensor, wanted: Tensor, mass: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared difference and squared `wanted`, summed over everything with the `mass` of each cell; both 0-d."""
    error, power = (found - wanted).square(), wanted.square()
    if mass is None or error.dim() < 3:
        return error.sum(), power.sum()
    return (error * mass[:, None]).sum(), (power * mass[:, None]).sum()
