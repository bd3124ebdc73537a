"""Real numbers as codes on a grid and back: the one place where either is done.

Weights are divided by their scale; activations are multiplied by its float32 inverse, as torch's quantized_decomposed operators
and the runtimes do. Both round halves to even.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeq.spec import Grid, QParams


@dataclass(frozen=True, slots=True)
class Coded:
    """A tensor as codes on a grid.

    codes: int8, or int16 for more bits. scale: float32 of the same rank, each of its sizes a divisor of the codes': [C, 1] is
    one a channel, [C, D/32] one for 32 neighbours. zero: which code stands for 0, int32 in the scale's shape; None: 0.
    """

    grid: Grid
    codes: Tensor
    scale: Tensor
    zero: Tensor | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where the parts do not belong together, or codes lie outside the grid or what stores them."""
        room = torch.iinfo(self.codes.dtype)
        if not room.min <= self.grid.qmin <= self.grid.qmax <= room.max:
            raise ValueError(f"codes of {self.grid.bits} bits do not fit {self.codes.dtype}")
        sizes = tuple(self.codes.shape), tuple(self.scale.shape)
        if len(sizes[0]) != len(sizes[1]) or any(n % k for n, k in zip(*sizes, strict=True)):
            raise ValueError(f"a scale of shape {sizes[1]} does not divide codes of shape {sizes[0]}")
        if self.zero is not None and self.zero.shape != self.scale.shape:
            raise ValueError(f"zero points of shape {tuple(self.zero.shape)} beside scales of shape {sizes[1]}")
        if self.codes.numel():
            low, high = (int(end) for end in self.codes.aminmax())
            if not self.grid.qmin <= low <= high <= self.grid.qmax:
                raise ValueError(f"codes from {low} to {high} on a grid from {self.grid.qmin} to {self.grid.qmax}")

    def decode(self) -> Tensor:
        """What the codes stand for, float32."""
        table = None if self.grid.table is None else torch.tensor(self.grid.table)
        return decode(self.codes, self.scale, self.zero, table, self.grid.qmin)


def decode(codes: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, qmin: int) -> Tensor:
    """What codes stand for, float32; table: float32, what those from qmin on stand for instead of themselves."""
    steps = codes.float() if table is None else table[codes.long() - qmin]
    if zero is not None:
        steps = steps - spread(zero, codes.shape)
    return steps * spread(scale, codes.shape)


def encode(x: Tensor, grid: Grid, scale: Tensor, zero: Tensor | None = None) -> Coded:
    """`x` at the nearest values of the grid, clipped at its ends; scale and zero as in Coded."""
    steps = x / spread(scale, x.shape)
    if grid.table is None:
        codes = torch.round(steps)
        codes = torch.clamp(codes if zero is None else codes + spread(zero, x.shape), grid.qmin, grid.qmax)
    else:
        values = torch.tensor(grid.table)
        codes = torch.bucketize(steps, (values[1:] + values[:-1]) / 2) + grid.qmin
    return Coded(grid, codes.to(storage(grid)), scale, zero)


def storage(grid: Grid) -> torch.dtype:
    """The dtype that holds a grid's codes."""
    return holds(grid.qmin, grid.qmax)


def holds(qmin: int, qmax: int) -> torch.dtype:
    """The smallest dtype that holds integers from qmin to qmax."""
    return torch.int8 if qmin >= -128 and qmax <= 127 else torch.int16


def spread(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Scales as wide as a tensor of `shape`, as far as broadcasting does not do it by itself."""
    for axis, (few, many) in enumerate(zip(scale.shape, shape, strict=True)):
        if 1 < few < many:
            scale = scale.repeat_interleave(many // few, axis)
    return scale


def along(scales: Tensor, axis: int, rank: int) -> Tensor:
    """Scales [C] of channels along `axis` in a tensor's rank."""
    return scales.view([-1 if i == axis else 1 for i in range(rank)])


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """An activation's integers: round half even of x · (1/scale) in float32, plus zero point, saturated.

    As torch's quantize_per_tensor does.
    """
    inverse = torch.tensor(1.0 / qparams.step, dtype=torch.float32)
    codes = torch.clamp(torch.round(x * inverse) + qparams.zero, qparams.qmin, qparams.qmax)
    return codes.to(holds(qparams.qmin, qparams.qmax))


def dequantize(q: Tensor, qparams: QParams) -> Tensor:
    """An activation's integers as float32: (q − zero point) · scale."""
    return (q.to(torch.float32) - qparams.zero) * torch.tensor(qparams.step, dtype=torch.float32)


def on_grid(x: Tensor, qparams: QParams) -> Tensor:
    """An activation at the nearest value of its grid, float32."""
    return fake_quantize(x, qparams.step, qparams.zero, qparams.qmin, qparams.qmax)


def fake_quantize(x: Tensor, scale: float, zero_point: int, qmin: int, qmax: int) -> Tensor:
    """Quantize and dequantize: `x` float32 to the nearest value of a grid, half to even, as quantized_decomposed does.

    torch.fake_quantize_per_tensor_affine also makes a mask for its gradient and takes about thirty times as long.
    """
    return (x * (1.0 / scale)).round_().clamp_(qmin - zero_point, qmax - zero_point).mul_(scale)
