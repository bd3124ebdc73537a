"""Grids: how a tensor is quantized, and the numbers that came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one tensor is quantized: signed integers of `bits` bits, affine or symmetric, per tensor or per channel."""

    bits: int
    symmetric: bool
    per_channel: bool

    @property
    def qmin(self) -> int:
        """Smallest stored integer; symmetric grids leave out -2^(bits-1), as the runtimes' weight kernels do."""
        return -(1 << (self.bits - 1)) + (1 if self.symmetric else 0)

    @property
    def qmax(self) -> int:
        """Largest stored integer."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True, slots=True)
class QParams:
    """Resolved numbers of one tensor: real = scale * (q - zero_point), per tensor or along `axis`."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    qmin: int = -128
    qmax: int = 127
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and dtype of a program's input or output, with its scale where it is quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    qparams: QParams | None = None
