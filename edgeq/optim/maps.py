"""The 256 values of dynamic quantization, and block-wise encoding to them (paper, sections 1.2 and 2)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

DECADES = 7  # exponents 10^-6 … 10^0: the paper's dynamic tree with seven bits beside the sign
# a block whose largest magnitude is below is brought up by 1 / LEAST first: the inverse of a denormal number is infinite
LEAST = 2.0**-64


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """256 values in ascending order, and how the nearest one is found.

    magnitudes: the values from 0 up: all of an unsigned map, 129 of the signed one (-1 is no value of it). thresholds:
    midpoints between neighbouring magnitudes, rounded down to float32, so that a float32 above one is nearer to the larger
    magnitude; on a midpoint, the smaller is taken. In the unsigned map the first one is 0, so that zero alone becomes zero: a
    second moment that is lost beside a momentum that is not would have the weight divided by epsilon. zero: the code of 0.
    """

    values: Tensor
    magnitudes: Tensor
    thresholds: Tensor
    zero: int


@functools.cache
def dynamic_map(signed: bool) -> Map:
    """The signed map for momenta, the unsigned one for second moments.

    Decade i, from 10^(i-7) to 10^(i-6), is cut into 2^i equal cells (2^(i+1) where there is no sign), whose middles are the
    values; 0 and 1 complete them. The values are those of bitsandbytes' create_dynamic_map, computed in float32 as there.
    """
    middles: list[Tensor] = []
    for decade in range(DECADES):
        cells = 2 ** (decade + (0 if signed else 1))
        edges = torch.linspace(0.1, 1, cells + 1, dtype=torch.float32)
        middles.append(10.0 ** (decade - DECADES + 1) * ((edges[:-1] + edges[1:]) / 2))
    positive = torch.cat([*middles, torch.ones(1)])
    magnitudes = torch.cat([torch.zeros(1), positive])
    values = torch.cat([-positive[:-1].flip(0), magnitudes]) if signed else magnitudes
    double = magnitudes.double()
    middle = (double[1:] + double[:-1]) / 2  # exact
    near = middle.float()
    thresholds = torch.where(near.double() > middle, torch.nextafter(near, torch.zeros_like(near)), near)
    if not signed:
        thresholds[0] = 0
    return Map(values, magnitudes, thresholds, 127 if signed else 0)


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` hold `count` values."""
    return -(-count // size)


def encode(x: Tensor, which: Map, size: int) -> tuple[Tensor, Tensor]:
    """Codes (uint8, the shape of `x`) and the largest magnitude of each block of `size` values (float32).

    x: float32, finite. A value becomes the nearest of which.values times its block's largest magnitude; zeros stay zeros, and
    in the unsigned map nothing else becomes zero.
    """
    flat = _blocked(x, size)
    maxima = flat.abs().amax(1)
    up = torch.where(maxima < LEAST, torch.full_like(maxima, 1 / LEAST), torch.ones_like(maxima))
    inverse = torch.where(maxima > 0, 1 / (maxima * up), torch.zeros_like(maxima))
    scaled = (flat * up[:, None] * inverse[:, None]).abs()
    index = torch.bucketize(scaled, which.thresholds.to(x.device))
    codes = torch.where(flat < 0, which.zero - index.clamp(max=which.zero), which.zero + index)
    return codes.to(torch.uint8).flatten()[: x.numel()].view(x.shape), maxima


def decode(codes: Tensor, maxima: Tensor, which: Map, size: int) -> Tensor:
    """float32 values of `codes`, in their shape."""
    found = which.values.to(codes.device)[codes.flatten().long()]
    return (_blocked(found, size) * maxima[:, None]).flatten()[: codes.numel()].view(codes.shape)


def _blocked(x: Tensor, size: int) -> Tensor:
    """`x` as rows of `size` values, the last one filled up with zeros."""
    flat = x.flatten()
    missing = blocks(flat.numel(), size) * size - flat.numel()
    if missing:
        flat = torch.cat([flat, flat.new_zeros(missing)])
    return flat.view(-1, size)
