"""Single operators as QDQ networks written by hand: their numbers are drawn, no calibration and no annotation is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Ints = NDArray[np.int64]
qd = torch.ops.quantized_decomposed


def quantized(x: Tensor, numbers: tuple[float, int]) -> Tensor:
    """Quantize and dequantize, as a QDQ program states it."""
    q = qd.quantize_per_tensor.default(x, *numbers, -128, 127, torch.int8)
    return again(q, numbers)


def again(q: Tensor, numbers: tuple[float, int]) -> Tensor:
    """Dequantize."""
    real: Tensor = qd.dequantize_per_tensor.default(q, *numbers, -128, 127, torch.int8)
    return real


def numbers(rng: np.random.Generator, low: float = 0.01, high: float = 0.1) -> tuple[float, int]:
    """A scale, a power of two half the time so that ties happen, and a zero point."""
    scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    scale = 2.0 ** round(np.log2(scale)) if rng.integers(2) else scale
    return float(np.float32(scale)), int(rng.integers(-128, 128))


class Weighted(nn.Module):
    """Quantize → convolution or linear with int8 weights → quantize."""

    def __init__(
        self,
        rng: np.random.Generator,
        function: Callable[..., Tensor],
        shape: Sequence[int],
        axis: int,
        *arguments: Any,
    ) -> None:
        super().__init__()
        channels = shape[axis]
        self.function, self.axis, self.arguments = function, axis, arguments
        self.source, self.target = numbers(rng), numbers(rng, 0.2, 1.0)
        self.register_buffer("weight", torch.from_numpy(rng.integers(-127, 128, shape).astype(np.int8)))
        scales = torch.tensor([numbers(rng, 0.001, 0.02)[0] for _ in range(channels)])
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(channels, dtype=torch.int64))
        self.integers = rng.integers(-4000, 4000, channels)
        unit = scales.double() * self.source[0]
        self.register_buffer("bias", (torch.from_numpy(self.integers) * unit).float())
        self.weight_only = False
        self.activation: Callable[[Tensor], Tensor] = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        weight = qd.dequantize_per_channel.default(
            self.weight, self.scales, self.zeros, self.axis, -127, 127, torch.int8
        )
        if self.weight_only:
            return self.function(x, weight, self.bias, *self.arguments)
        y = self.function(quantized(x, self.source), weight, self.bias, *self.arguments)
        return quantized(self.activation(y), self.target)


class Plain(nn.Module):
    """Quantize every input → operator → quantize."""

    def __init__(
        self, function: Callable[..., Tensor], sources: Sequence[tuple[float, int]], target: tuple[float, int]
    ) -> None:
        super().__init__()
        self.function, self.sources, self.target = function, sources, target

    def forward(self, *inputs: Tensor) -> Tensor:
        return quantized(
            self.function(*[quantized(x, n) for x, n in zip(inputs, self.sources, strict=True)]), self.target
        )


def integers(rng: np.random.Generator, *shape: int) -> Ints:
    """Any int8 values."""
    return rng.integers(-128, 128, shape)


def floats(q: Ints, source: tuple[float, int]) -> Tensor:
    """What the integers stand for."""
    return ((torch.from_numpy(q) - source[1]).double() * source[0]).float()
