"""What makes a random network like a trained one: structured data, channels of unlike scale, statistics of that data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Sample = tuple[Tensor, ...]
Recipe = tuple[Callable[[], nn.Module], Callable[[Generator], Sample]]


@dataclass(frozen=True, slots=True)
class Network:
    """A module in eval mode, batches to calibrate on, and batches that calibration does not see."""

    module: nn.Module
    calibration: list[Sample]
    held_out: list[Sample]

    @property
    def example_inputs(self) -> Sample:
        """Zeros in the shapes and types of its inputs."""
        return tuple(torch.zeros_like(x) for x in self.calibration[0])


def settled(module: nn.Module, samples: Sequence[Sample]) -> nn.Module:
    """`module` with weights of unlike channels and long tails, and BatchNorm's statistics from `samples`; in eval mode."""
    for part in module.modules():
        _scale(part)
        if hasattr(part, "settle"):  # weights that are no weights, as DFL's
            part.settle()
    module.eval()
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True  # None: the mean over all batches
    stacked = all(x.dim() and x.shape[0] == 1 for x in samples[0])
    with torch.no_grad():
        for batch in [tuple(torch.cat(parts) for parts in zip(*samples, strict=True))] if stacked else samples:
            module(*batch)
    return module.eval()


@torch.no_grad()
def _scale(part: nn.Module) -> None:
    """Draw the weights of one layer: normal, with tails, and a scale of its own for every channel."""
    if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
        _draw(part.weight, math.prod(part.weight.shape[1:]), 0)
    elif isinstance(part, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        _draw(part.weight, math.prod(part.weight.shape) / part.weight.shape[1] / math.prod(part.stride), 1)
    elif isinstance(part, (_BatchNorm, nn.LayerNorm, nn.GroupNorm)) and part.weight is not None:
        tail = 1 + 3 * (torch.rand_like(part.weight) < 0.02)  # a few channels are far larger, as in trained networks
        part.weight.copy_(_unlike(part.weight, 0.35) * tail * part.weight)
        # BatchNorm behind ReLU doubles small differences every few layers unless most values pass: random networks are chaotic
        part.bias.add_(torch.randn_like(part.bias) * 0.3 + isinstance(part, _BatchNorm))
    elif isinstance(part, nn.PReLU):
        part.weight.mul_(_unlike(part.weight, 0.5))


def _draw(weight: Tensor, fan_in: float, channels: int) -> None:
    each = [weight.shape[channels] if axis == channels else 1 for axis in range(weight.dim())]
    tails, scale = _unlike(weight, 0.4), _unlike(torch.empty(each), 0.4)
    weight.copy_(torch.randn_like(weight) * tails * scale * math.sqrt(1.5 / fan_in))


def _unlike(like: Tensor, spread: float) -> Tensor:
    """Factors about 1 whose logarithms are normal."""
    return (torch.randn_like(like) * spread - spread**2 / 2).exp()


def picture(generator: Generator, channels: int, height: int, width: int) -> Tensor:
    """[channels, height, width], 0 to 1: light that falls off, texture of several sizes, a few flat things with edges."""
    image = torch.zeros(channels, height, width)
    for cells, strength in ((2, 1.0), (6, 0.5), (24, 0.2)):
        noise = torch.randn(1, channels, cells, cells, generator=generator) * strength
        image += F.interpolate(noise, (height, width), mode="bilinear")[0]
    for _ in range(4):
        top, left, tall, wide = torch.rand(4, generator=generator).tolist()
        y, x = int(top * height * 0.8), int(left * width * 0.8)
        color = torch.randn(channels, 1, 1, generator=generator) * 1.5
        image[:, y : y + max(2, int(tall * height / 2)), x : x + max(2, int(wide * width / 2))] = color
    return (image + 0.05 * torch.randn(image.shape, generator=generator)).sigmoid()


def images(size: int, *, channels: int = 3, raw: bool = False) -> Callable[[Generator], Sample]:
    """Draws one square image, normalised as ImageNet's are; raw: from 0 to 1."""

    def sample(generator: Generator) -> Sample:
        image = picture(generator, channels, size, size)
        return ((image if raw else (image - 0.45) / 0.225)[None],)

    return sample


def sqnr_db(network: Network, predict: Callable[..., Sequence[Tensor]]) -> float:
    """Signal to noise of `predict` against the module itself on the unseen batches, in dB: the worst output's.

    predict: takes a batch's tensors, returns its outputs, flat. Outputs of whole numbers are left out.
    """
    power: dict[int, Tensor] = {}
    noise: dict[int, Tensor] = {}
    for batch in network.held_out:
        with torch.no_grad():
            wanted = pytree.tree_leaves(network.module(*batch))
        for i, (want, got) in enumerate(zip(wanted, predict(*batch), strict=True)):
            if want.is_floating_point():
                power[i] = power.get(i, torch.zeros(())) + want.double().square().sum()
                noise[i] = noise.get(i, torch.zeros(())) + (got.double() - want).square().sum()
    return min(float(10 * torch.log10(power[i] / noise[i])) for i in power)
