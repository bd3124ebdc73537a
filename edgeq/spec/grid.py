"""Grids: how a tensor is quantized, and the numbers that came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Tile:
    """Which values of a tensor share one scale: all of it, those of an output channel, or `size` neighbours of a channel's."""

    over: Literal["tensor", "channel", "group"] = "tensor"
    size: int = 0

    def __post_init__(self) -> None:
        if (self.size > 0) is not (self.over == "group"):
            raise ValueError("a group has a size above 0, and nothing else has one")


TENSOR: Final = Tile()
CHANNEL: Final = Tile("channel")


@dataclass(frozen=True, slots=True)
class Grid:
    """Which values a tensor's codes stand for: signed integers of `bits` bits, affine or symmetric, in steps of a scale.

    full_range: a symmetric grid has its lowest integer too, which the runtimes' weight kernels leave out.
    table: what the codes from qmin on stand for instead, in steps of the scale, ascending; None: the integers themselves.
    """

    bits: int
    symmetric: bool = False
    tile: Tile = TENSOR
    full_range: bool = False
    table: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"a grid of {self.bits} bits: there are those of 1 to 16")
        if self.qmin >= self.qmax:
            raise ValueError(f"a symmetric grid of {self.bits} bit has a single value; give it its full range")
        if self.table is not None and len(self.table) != self.qmax - self.qmin + 1:
            raise ValueError(f"a table of {len(self.table)} values for {self.qmax - self.qmin + 1} codes")
        if self.table is not None and list(self.table) != sorted(set(self.table)):
            raise ValueError("a table that does not ascend")

    @property
    def reach(self) -> float:
        """The largest value of both signs, in steps of the scale."""
        return float(self.qmax) if self.table is None else min(-self.table[0], self.table[-1])

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) + (1 if self.symmetric and not self.full_range else 0)

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1


def log2(bits: int) -> Grid:
    """Signed powers of two, 0 among them, for weights, so that a product with one is a shift.

    In steps of the scale: ±1, ±1/2, ... and 0. Miyashita, Lee, Murmann 2016, "Convolutional Neural Networks using Logarithmic
    Data Representation", arXiv 1603.01025, section 3, which rounds the exponent; ours rounds the value.
    """
    half = 1 << (bits - 1)
    table = (*(-(2.0**-k) for k in range(half)), 0.0, *(2.0 ** (k + 2 - half) for k in range(half - 1)))
    return Grid(bits, tile=CHANNEL, table=table)


@dataclass(frozen=True, slots=True)
class QParams:
    """Resolved numbers of one tensor: real = scale * (q - zero_point), per tensor or along `axis`."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    qmin: int = -128
    qmax: int = 127
    axis: int | None = None

    @property
    def step(self) -> float:
        """The one scale of all the tensor.

        Raises:
            ValueError: there are several, and whoever asks would compute with the first channel's.
        """
        (scale,) = self.scale
        return scale

    @property
    def zero(self) -> int:
        """The one zero point of all the tensor; raises as `step` does."""
        (zero,) = self.zero_point
        return zero


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and dtype of a program's input or output, with its scale where it is quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    qparams: QParams | None = None
