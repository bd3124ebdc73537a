"""The numbers that calibration chose, before a program is made of them."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgeq import whole
from edgeq.graph.coded import Coded
from edgeq.schema import fit
from edgeq.spec import Grid, QParams

BIAS_LIMIT = 1 << 22  # beyond it float32 cannot say which integer a bias is, and runtimes would disagree
WIDE_LIMIT = 1 << 30  # under activations of more than eight bits, whose kernels have wider biases


@dataclass(slots=True)
class Resolved:
    """The numbers calibration chose.

    activations: key of a tensor set (its representative's name) → scale and zero point. weights: layer key → codes in torch's
    layout, with their scales. biases: layer key → float32 [C_out], only where calibration moved a bias. constants: node name and
    argument, as `conv2d 1` → a float constant in the place of the network's own, which was scaled before anything was looked at.
    """

    activations: dict[str, QParams] = field(default_factory=dict)
    weights: dict[str, Coded] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)

    def update(self, other: Resolved) -> None:
        """Take over everything that `other` holds."""
        self.activations.update(other.activations)
        self.weights.update(other.weights)
        self.biases.update(other.biases)
        self.constants.update(other.constants)

    def copy(self) -> Resolved:
        """The same numbers, whose tables can be changed apart."""
        return Resolved(dict(self.activations), dict(self.weights), dict(self.biases), dict(self.constants))

    def save(self, path: Path) -> None:
        """Write the numbers as safetensors, whole or not at all."""
        tensors: dict[str, Tensor] = {f"bias {key}": bias for key, bias in self.biases.items()}
        tensors |= {f"constant {key}": held for key, held in self.constants.items()}
        for key, coded in self.weights.items():
            tensors |= {f"codes {key}": coded.codes, f"scale {key}": coded.scale}
            tensors |= {} if coded.zero is None else {f"zero {key}": coded.zero}
        told = NumbersFile(self.activations, {key: coded.grid for key, coded in self.weights.items()})
        about = {"numbers": json.dumps(dataclasses.asdict(told))}
        with whole.file(path) as part:
            save_file({name: t.detach().contiguous() for name, t in tensors.items()}, part, metadata=about)

    @classmethod
    def load(cls, path: Path) -> Resolved:
        """Read what `save` wrote.

        Raises:
            EdgeqError, ValueError, SafetensorError, OSError: it is missing or damaged.
        """
        with safe_open(path, framework="pt") as file:
            told = fit(json.loads((file.metadata() or {})["numbers"]), NumbersFile, path)
            held: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        weights = {
            key: Coded(grid, held[f"codes {key}"], held[f"scale {key}"], held.get(f"zero {key}"))
            for key, grid in told.grids.items()
        }
        biases, constants = (
            {name.removeprefix(kind): t for name, t in held.items() if name.startswith(kind)}
            for kind in ("bias ", "constant ")
        )
        return cls(dict(told.activations), weights, biases, constants)


@dataclass(frozen=True, slots=True)
class NumbersFile:
    """What a file of numbers says beside its tensors: numbers of each tensor set, the grid of each layer's weights."""

    activations: dict[str, QParams]
    grids: dict[str, Grid]


def wrong_grid(q: QParams) -> str:
    """Why these are no numbers of a quantized tensor: scale or zero point are off; empty where they are."""
    (scale,), (zero_point,) = q.scale, q.zero_point
    if not (math.isfinite(scale) and scale > 0 and float(torch.tensor(scale, dtype=torch.float32)) == scale):
        return f"scale {scale} is no positive float32"
    return "" if q.qmin <= zero_point <= q.qmax else f"zero point {zero_point} lies outside [{q.qmin}, {q.qmax}]"


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
