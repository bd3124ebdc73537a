"""How far values are from those they stand for, as a whole and in single slices along an axis."""

from __future__ import annotations

import math
from typing import Final

from torch import Tensor

FAR_DB: Final = 10.0  # error beyond a tenth of a tensor's power: no decision survives that
SLICES, VALUES = 256, 32  # axes of at most so many slices are looked along, and slices of at least so many values


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Signal to quantization noise ratio in dB: 10·log10(Σ reference² / Σ (reference − other)²), the signal's NaN and Inf
    left out."""
    noise = apart(reference.double(), other.double()).square().sum().item()
    signal = reference[reference.isfinite()].double().square().sum().item()
    if noise == 0 or math.isinf(noise):
        return math.inf if noise == 0 else -math.inf
    return 10 * math.log10(max(signal, 1e-300) / noise)


def apart(a: Tensor, b: Tensor) -> Tensor:
    """|a − b|: 0 where both are the same infinity or both NaN, infinite where only one is."""
    same = (a == b) | (a.isnan() & b.isnan())
    return (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf).masked_fill(same, 0)


def lost(want: Tensor, got: Tensor, limit_db: float, ignored: float = 0.0) -> tuple[int, list[int]] | None:
    """An axis of `want` [batches, …], counted behind the first, and its slices whose error is beyond `limit_db`; None
    where there are none.

    ignored: mean squared error that is no loss, however little power a slice has.
    """
    for axis in range(1, want.dim()):
        count = want.shape[axis]
        values = want.numel() // max(count, 1)
        if not 1 < count <= SLICES or values < VALUES:
            continue
        others = [a for a in range(want.dim()) if a != axis]
        power = want.double().square().sum(others)
        error = (got.double() - want.double()).square().sum(others)
        slices = ((error > power * 10 ** (-limit_db / 10)) & (error > ignored * values)).nonzero().flatten().tolist()
        if slices:
            return axis - 1, slices
    return None
