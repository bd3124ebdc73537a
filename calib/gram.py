"""A layer's output error as a quadratic of its weights: sums over the data that, once made, cost the same for any data.

With x the patches (im2col) that a kernel meets in the float network and x̂ those in the quantized one, the mean squared
difference between Ŵx̂ + b̂ and Wx + b depends on the data only through E[x̂x̂ᵀ], E[x̂xᵀ], the means and E[(Wx)²]. Nagel et
al. 2020 (arXiv 2004.10568, equation 20) reduce the problem to the same form before they sample minibatches instead; Frantar
et al. 2023 (GPTQ, arXiv 2210.17323, section 3) work on E[x̂x̂ᵀ] alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from edgeq.graph.ops import conv_attrs, kind_of, value

PRODUCTS: Final = 40_000_000_000  # multiplications one layer's sums may cost: under a second on two cores
ROWS_PER_TAP: Final = 16  # sampled output cells for each weight of a row at least, so that E[x̂x̂ᵀ] has full rank
MOST_CELLS: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class Rows:
    """Weight rows that meet the same output cells: all of a layer, or one stride phase of a transposed convolution.

    taps: where a row's weights lie in the flat weight, int64 [G, R, D], G groups of R rows over D = C_in/G · J inputs.
    channels: each row's output channel, int64 [G, R].
    offsets: input cells that the J taps of a row read, relative to `step` × output cell, int64 [J, axes].
    step: input cells from one output cell to the next. cells: output cells along each axis.
    """

    taps: Tensor
    channels: Tensor
    offsets: Tensor
    step: tuple[int, ...]
    cells: tuple[int, ...]

    @property
    def count(self) -> int:
        """Output cells of one example of a convolution."""
        return math.prod(self.cells)

    def cells_in(self, shape: Sequence[int]) -> int:
        """Output cells that an input of `shape` [N, C_in, ...] makes; every leading axis of a linear layer's counts."""
        return shape[0] * self.count if self.cells else math.prod(shape[:-1])

    def patches(self, x: Tensor, picked: Tensor) -> Tensor:
        """What the rows read for output cells `picked` [P] of `x` [N, C_in, ...]: float32 [G, P, D].

        Cells count through all frames of `x`; beyond its edges there are zeros.
        """
        groups, _, width = self.taps.shape
        if not self.cells:  # linear
            return x.reshape(1, -1, width)[:, picked]
        low = [max(0, -int(o.min())) for o in self.offsets.T]
        high = [
            max(0, (n - 1) * s + int(o.max()) - size + 1)
            for n, s, o, size in zip(self.cells, self.step, self.offsets.T, x.shape[2:], strict=True)
        ]
        padded = F.pad(x, [p for pair in reversed(list(zip(low, high, strict=True))) for p in pair])
        frame, cell = picked // self.count, picked % self.count
        at: list[Tensor] = []
        for axis in reversed(range(len(self.cells))):
            here = (cell % self.cells[axis]) * self.step[axis] + low[axis]
            at.insert(0, here[:, None] + self.offsets[None, :, axis])
            cell = cell // self.cells[axis]
        flat = padded.movedim(1, -1)  # channels last, so that one index fetches them all
        found = flat[(frame[:, None], *at)]  # [P, J, C_in]
        return found.view(len(picked), len(self.offsets), groups, -1).permute(2, 0, 3, 1).reshape(groups, -1, width)


def rows_of(node: Node) -> list[Rows]:
    """The rows of a layer with weights: one entry, or one for each stride phase of a transposed convolution."""
    kind, weight = kind_of(node) or "", value(node.args[1])
    if kind == "linear":
        index = torch.arange(weight.numel()).view(1, *weight.shape)
        return [Rows(index, torch.arange(weight.shape[0])[None], torch.zeros(1, 0, dtype=torch.long), (), ())]
    attrs, cells, kernel = conv_attrs(node, kind), tuple(value(node).shape[2:]), tuple(weight.shape[2:])
    numbers = torch.arange(weight.numel())
    if kind != "conv_transpose2d":
        index = numbers.view(attrs.groups, weight.shape[0] // attrs.groups, -1)
        reach = [
            [k * d - p for k in range(size)] for size, d, p in zip(kernel, attrs.dilation, attrs.padding, strict=True)
        ]
        offsets = torch.tensor(list(itertools.product(*reach)))
        return [
            Rows(index, torch.arange(weight.shape[0]).view(attrs.groups, -1), offsets, attrs.stride, cells)
        ]
    # output cell p = stride·m + phase reads input cell m + (phase + padding − dilation·tap) / stride where that is whole
    found = []
    shaped = numbers.view(attrs.groups, weight.shape[0] // attrs.groups, weight.shape[1], *kernel).transpose(1, 2)
    for phase in itertools.product(*(range(s) for s in attrs.stride)):
        taps = [
            [k for k in range(size) if (f + p - d * k) % s == 0]
            for size, f, s, p, d in zip(kernel, phase, attrs.stride, attrs.padding, attrs.dilation, strict=True)
        ]
        size = tuple(-(-(n - f) // s) for n, f, s in zip(cells, phase, attrs.stride, strict=True))
        if not all(taps) or not all(n > 0 for n in size):
            continue
        reach = [
            [(f + p - d * k) // s for k in ks]
            for ks, f, s, p, d in zip(taps, phase, attrs.stride, attrs.padding, attrs.dilation, strict=True)
        ]
        index = shaped[:, :, :, taps[0]][..., taps[1]].flatten(2)
        channels = torch.arange(index.shape[0] * index.shape[1]).view(index.shape[:2])
        found.append(Rows(index, channels, torch.tensor(list(itertools.product(*reach))), (1, 1), size))
    return found


@dataclass(slots=True)
class Gram:
    """Weighted means over output cells for one `Rows`, float64 while they are summed and float32 afterwards.

    quantized: E[x̂x̂ᵀ] [G, D, D]. mixed: E[x̂xᵀ] [G, D, D]. mean_quantized, mean: E[x̂], E[x] [G, D]. power: E[(Wx)²] [G, R].
    """

    rows: Rows
    quantized: Tensor
    mixed: Tensor
    mean_quantized: Tensor
    mean: Tensor
    power: Tensor
    mass: float = 0.0

    @classmethod
    def empty(cls, rows: Rows) -> Gram:
        """No cell seen yet."""
        groups, count, width = rows.taps.shape
        square, line = (groups, width, width), (groups, width)
        zeros = [torch.zeros(s, dtype=torch.float64) for s in (square, square, line, line, (groups, count))]
        return cls(rows, *zeros)

    def add(self, seen: Tensor, real: Tensor, weight: Tensor, mass: Tensor) -> None:
        """Take in patches of both networks [G, P, D] with `mass` [P] each; `weight` is the layer's float weight."""
        heavy = seen * mass[None, :, None]
        self.quantized += heavy.transpose(1, 2) @ seen
        self.mixed += heavy.transpose(1, 2) @ real
        self.mean_quantized += heavy.sum(1)
        self.mean += (real * mass[None, :, None]).sum(1)
        answer = real @ weight.reshape(-1)[self.rows.taps].transpose(1, 2)
        self.power += (answer.square() * mass[None, :, None]).sum(1)
        self.mass += float(mass.sum())

    def finish(self) -> Gram:
        """Sums to means."""
        parts = (self.quantized, self.mixed, self.mean_quantized, self.mean, self.power)
        return Gram(self.rows, *((p / self.mass).float() for p in parts), mass=1.0)


def share_to_sample(rows: Rows, cells: int) -> float:
    """Which share of all `cells` of the calibration data enters the sums."""
    width = rows.taps.shape[2]
    affordable = PRODUCTS // (2 * rows.taps.shape[0] * width * width)
    return min(1.0, max(ROWS_PER_TAP * width, min(affordable, MOST_CELLS)) / cells)
