"""What one pass over the calibration data keeps of an activation tensor: enough for every range method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.spec import EdgeqError

BINS: Final = 4096  # two neighbours merge when the range outgrows them, so between half and all of them are in use
SAMPLES: Final = 1 << 16  # values of one batch that enter the histogram; extremes always see them all
SMOOTHING: Final = 0.01  # weight of a new batch in the moving averages once 1/batches is smaller
FINEST: Final = -120  # smallest exponent of a bin's width, well above the smallest normal float32


class Observer:
    """Running statistics of one activation tensor, fed batch by batch, read by the range methods.

    low, high: exact extremes of everything seen. low_batch, high_batch: the first batch that reached them.
    average_low, average_high: per-batch extremes, their plain mean over the first 100 batches and an exponential
        moving average with weight 0.01 afterwards (Jacob et al. 2018, section 3.1).
    count, batches: values and batches seen. reaches: each batch's largest magnitude.
    counts, start, width: the histogram, kept only where `histogram` is true: `counts[i]` sampled values, exact zeros
        left out, lie in [(start + i)·width, (start + i + 1)·width). The width is a power of two and a bin's edge
        always lies at 0, so that a growing range merges pairs of bins exactly and no second pass is needed.
    zeros: sampled values that are exactly 0 (a bird's-eye view of a LiDAR sweep is 98 % zeros).
    noise: what float32's rounding of the values that it was computed of comes to; 0 where nobody asked.
    """

    def __init__(self, name: str, *, histogram: bool = False) -> None:
        """Observe the tensor called `name`, the name that errors show."""
        self.name = name
        self.low, self.high = math.inf, -math.inf
        self.average_low = self.average_high = 0.0
        self.low_batch = self.high_batch = 0
        self.count = self.batches = 0
        self.reaches: list[float] = []
        self.zeros = 0
        self.noise = 0.0
        self.start = 0
        self.exponent: int | None = None  # width = 2**exponent; None until a value other than 0 is seen
        self.counts: NDArray[np.int64] | None = np.zeros(BINS, np.int64) if histogram else None

    @classmethod
    def merged(cls, parts: Sequence[Observer]) -> Observer:
        """What one observer of all tensors that `parts` observed would hold; per-batch extremes are the widest average.

        The name is the first one's.
        """
        whole = cls(parts[0].name, histogram=parts[0].counts is not None)
        whole.low, whole.low_batch = min((p.low, p.low_batch) for p in parts)
        whole.high, negative = max((p.high, -p.high_batch) for p in parts)
        whole.high_batch = -negative
        whole.average_low = min(p.average_low for p in parts)
        whole.average_high = max(p.average_high for p in parts)
        whole.batches, whole.count = max(p.batches for p in parts), sum(p.count for p in parts)
        whole.zeros = sum(p.zeros for p in parts)
        whole.noise = min(p.noise for p in parts)
        if whole.counts is not None:
            whole._grow()
            for part in parts:
                whole._add(part)
        return whole

    @property
    def width(self) -> float:
        """Width of a histogram bin."""
        return math.ldexp(1.0, self.exponent or 0)

    def update(self, x: Tensor, *, batch: int, stacked: int = 1) -> None:
        """Take in one batch, a float tensor of any shape, or several `stacked` along the first axis.

        batch: index of the first one, for the errors.

        Raises:
            EdgeqError: the tensor is empty, or holds NaN or Inf.
        """
        if x.numel() == 0:
            raise EdgeqError(
                f"tensor {self.name!r} is empty in calibration batch {batch}: give batches with at least one element"
            )
        each = x.detach().view(stacked, -1, *x.shape[1:]) if x.dim() else x.detach().view(1, 1)
        axes = tuple(range(1, each.dim()))
        # both at once (aminmax) is up to sixty times slower along axes, and on channels-last tensors
        for index, (low, high) in enumerate(
            zip(each.amin(axes).tolist(), each.amax(axes).tolist(), strict=True), batch
        ):
            self._extremes(low, high, index)
        self.count += x.numel()
        if self.counts is not None:
            self._grow()
            self._fill(_sample(x.detach(), stacked * SAMPLES))

    def _extremes(self, low: float, high: float, batch: int) -> None:
        if not (math.isfinite(low) and math.isfinite(high)):
            what = "NaN" if math.isnan(low) or math.isnan(high) else "Inf"
            raise EdgeqError(
                f"tensor {self.name!r} holds {what} in calibration batch {batch}: mend the model or that input"
            )
        if low < self.low:
            self.low, self.low_batch = low, batch
        if high > self.high:
            self.high, self.high_batch = high, batch
        self.batches += 1
        self.reaches.append(max(-low, high))
        weight = max(SMOOTHING, 1.0 / self.batches)
        self.average_low += weight * (low - self.average_low)
        self.average_high += weight * (high - self.average_high)

    def _grow(self) -> None:
        """Widen the bins by powers of two until [low, high] fits into them, then shift them to start at low."""
        assert self.counts is not None
        reach = max(-self.low, self.high)
        if reach == 0.0:
            return
        exponent = self.exponent if self.exponent is not None else FINEST
        exponent = max(exponent, math.frexp(max(self.high - self.low, reach) / BINS)[1] - 2)
        while math.floor(math.ldexp(self.high, -exponent)) - math.floor(math.ldexp(self.low, -exponent)) >= BINS:
            exponent += 1
        start = math.floor(math.ldexp(self.low, -exponent))
        if self.exponent is not None and (exponent, start) != (self.exponent, self.start):
            self.counts = self._rebinned(exponent, start)
        self.exponent, self.start = exponent, start

    def _rebinned(self, exponent: int, start: int) -> NDArray[np.int64]:
        """The histogram in wider bins, the first of which is number `start`."""
        assert self.counts is not None and self.exponent is not None
        filled = np.flatnonzero(self.counts)
        moved = np.zeros_like(self.counts)
        np.add.at(moved, ((filled + self.start) >> (exponent - self.exponent)) - start, self.counts[filled])
        return moved

    def _add(self, part: Observer) -> None:
        """Take in the histogram of `part`, whose range lies in this one's."""
        assert self.counts is not None and part.counts is not None
        if part.exponent is not None and self.exponent is not None:
            self.counts += part._rebinned(self.exponent, self.start)

    def _fill(self, sample: Tensor) -> None:
        assert self.counts is not None
        values = sample.float()
        scaled = values * math.ldexp(1.0, -(self.exponent or 0))  # exact: a power of two
        counts = torch.bincount(scaled.floor_().int() - self.start, minlength=BINS).numpy()
        zeros = sample.numel() - int(np.count_nonzero(values.numpy()))
        if zeros:  # counted and taken out again, because selecting the others costs more than counting all
            counts[-self.start] -= zeros
        self.zeros += zeros
        self.counts += counts

    def bins(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres and counts of the histogram's filled bins, float64 [N], zeros left out; one bin's span is `width`."""
        assert self.counts is not None
        filled = np.flatnonzero(self.counts)
        return np.float64(self.width) * (filled.astype(np.float64) + self.start + 0.5), self.counts[filled].astype(
            np.float64
        )


def _sample(x: Tensor, most: int) -> Tensor:
    """At most `most` values of `x`, evenly strided; the stride shares no factor with an axis, so none aliases."""
    step = -(-x.numel() // most)
    while step > 1 and any(math.gcd(step, size) != 1 for size in x.shape):
        step += 1
    lying = sorted(range(x.dim()), key=x.stride, reverse=True)  # in memory's order, so that flattening copies nothing
    return x.permute(lying).reshape(-1)[::step]
