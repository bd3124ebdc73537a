"""Rounding `nearest`: each weight by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeq.spec import QuantSpec


def integers(weight: Tensor, scales: Tensor, axis: int, spec: QuantSpec) -> Tensor:
    """Nearest integers of weight / scale along `axis`, halves to even, clipped to [qmin, qmax]; int8."""
    shape = [1] * weight.dim()
    shape[axis] = -1
    return torch.clamp(torch.round(weight / scales.view(shape)), spec.qmin, spec.qmax).to(torch.int8)
