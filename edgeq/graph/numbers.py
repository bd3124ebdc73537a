"""The numbers that calibration chose, before a program is made of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.graph.coded import Coded
from edgeq.spec import QParams

BIAS_LIMIT = 1 << 22  # beyond it float32 cannot say which integer a bias is, and runtimes would disagree
WIDE_LIMIT = 1 << 30  # under activations of more than eight bits, whose kernels have wider biases


@dataclass(slots=True)
class Resolved:
    """The numbers calibration chose.

    activations: representative node of a tensor set → scale and zero point. weights: layer key → codes in torch's layout,
    with their scales. biases: layer key → float32 [C_out], only where calibration moved a bias.
    """

    activations: dict[Node, QParams] = field(default_factory=dict)
    weights: dict[str, Coded] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)

    def update(self, other: Resolved) -> None:
        """Take over everything that `other` holds."""
        self.activations.update(other.activations)
        self.weights.update(other.weights)
        self.biases.update(other.biases)

    def copy(self) -> Resolved:
        """The same numbers, whose tables can be changed apart."""
        return Resolved(dict(self.activations), dict(self.weights), dict(self.biases))


def bias_limit(source: QParams) -> int:
    """How many steps a layer's bias may have; source: the numbers of the layer's input."""
    return BIAS_LIMIT if source.qmax - source.qmin < 1 << 8 else WIDE_LIMIT


def snap_weight_scale(scale: Tensor, bias: Tensor | None, source: QParams) -> Tensor:
    """Widen the scale [C] of channels whose bias would leave its int32 grid (dead channels, above all).

    source: the input's numbers. Such a bias is larger than any sum the channel can reach, so the coarser weights change nothing.
    """
    if bias is None:
        return scale
    least = bias.abs().double() / (source.step * (bias_limit(source) - 1))
    return torch.maximum(scale, least.to(torch.float32) * (1 + 2**-20))


def snap_bias(bias: Tensor, scale: Tensor, in_scale: float) -> Tensor:
    """The nearest bias on the int32 grid of weight scale × input scale, float32 [C_out]."""
    unit = scale.double() * in_scale
    return (torch.round(bias.double() / unit) * unit).to(torch.float32)
