"""How far values are from those they stand for, as a whole and in single slices along an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from torch import Tensor

LOST_DB: Final = 3.0  # error beyond half of the power of one slice of a tensor: its values are gone
FAR_DB: Final = 10.0  # error beyond a tenth of a tensor's power: no decision survives that
SLICES, VALUES = 256, 8  # axes of at most so many slices are looked along, and slices of at least so many values


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


def lost(
    want: Tensor,
    got: Tensor,
    limit_db: float,
    *,
    axes: Sequence[int] | None = None,
    ignored: float = 0.0,
    reach: float = math.inf,
) -> tuple[int, list[int]] | None:
    """An axis of `want` [batches, …], counted behind the first, and its slices whose error is beyond `limit_db`; None
    where there are none.

    axes: those to look along; None for all. ignored: mean squared error that is no loss, however little power a slice has.
    reach: slices with values larger than this are not lost.
    """
    signal, noise = want.double().square(), (got.double() - want.double()).square()
    if not noise.numel() or float(noise.max()) <= ignored:
        return None
    for axis in range(1, want.dim()) if axes is None else [a + 1 for a in axes]:
        count = want.shape[axis]
        values = want.numel() // max(count, 1)
        if not 1 < count <= SLICES or values < VALUES:
            continue
        others = [a for a in range(want.dim()) if a != axis]
        power, error = signal.sum(others), noise.sum(others)
        beyond = (error > power * 10 ** (-limit_db / 10)) & (error > ignored * values)
        slices = (beyond & (signal.amax(others) <= reach**2)).nonzero().flatten().tolist()
        if slices:
            return axis - 1, slices
    return None
