"""A layer's output error as a quadratic of its weights: sums over the data that, once made, cost the same for any data.

With x̂ the patches (im2col) that a kernel meets in the quantized network, y = Wx what the float layer answers and r = y − Wx̂
what float weights leave there, the mean squared difference between Ŵx̂ and y depends on the data only through E[x̂x̂ᵀ],
E[r x̂ᵀ], the means and E[r²]. Nagel et al. 2020 (arXiv 2004.10568, section 3.1) derive rounding as this quadratic problem before
they sample minibatches instead; Frantar et al. 2023 (GPTQ, arXiv 2210.17323, section 3) work on E[x̂x̂ᵀ] alone. Ours: sums of
the small r and not of y, whose squares would cancel to less than float32 holds.
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

PRODUCTS: Final = 20_000_000_000  # multiplications one layer's sums may cost: half a second on two cores
CELLS_PER_TAP: Final = 16  # output cells for each weight of a row at least, so that the sums are no accident
MOST_CELLS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Rows:
    """Weight rows that meet the same output cells: all of a layer, or one stride phase of a transposed convolution.

    taps: where a row's weights lie in the flat weight, int64 [G, R, D], G groups of R rows over D = J · C_in/G inputs.
    channels: each row's output channel, int64 [G, R].
    offsets: input cells that the J taps of a row read, relative to `step` × output cell, int64 [J, axes].
    step: input cells from one output cell to the next. cells: output cells along each axis, every `stride`-th of the
    layer's from `phase` on.
    """

    taps: Tensor
    channels: Tensor
    offsets: Tensor
    step: tuple[int, ...]
    cells: tuple[int, ...]
    phase: tuple[int, ...]
    stride: tuple[int, ...]

    def cells_in(self, shape: Sequence[int]) -> int:
        """Output cells that an input of `shape` [N, C_in, ...] makes; every leading axis of a linear layer's counts."""
        return shape[0] * math.prod(self.cells) if self.cells else math.prod(shape[:-1])

    def patches(self, x: Tensor, picked: Tensor) -> Tensor:
        """What the rows read for output cells `picked` [P] of `x` [N, C_in, ...]: float32 [G, P, D].

        Cells count through all examples of `x`; beyond its edges there are zeros.
        """
        groups, _, width = self.taps.shape
        if not self.cells:  # linear
            return x.reshape(-1, width)[picked][None]
        low = [max(0, -int(o.min())) for o in self.offsets.T]
        high = [
            max(0, (n - 1) * s + int(o.max()) - size + 1)
            for n, s, o, size in zip(self.cells, self.step, self.offsets.T, x.shape[2:], strict=True)
        ]
        padded = F.pad(x, [p for pair in reversed(list(zip(low, high, strict=True))) for p in pair]).movedim(1, -1)
        sizes, at, cell = padded.shape[1:-1], torch.zeros(1, dtype=torch.long), picked
        pace = 1
        for axis in reversed(range(len(sizes))):
            along = (cell % self.cells[axis]) * self.step[axis] + low[axis]
            at = at + (along[:, None] + self.offsets[None, :, axis]) * pace
            cell, pace = cell // self.cells[axis], pace * sizes[axis]
        at = at + cell[:, None] * pace
        found = padded.reshape(-1, padded.shape[-1]).index_select(0, at.reshape(-1))  # [P · J, C_in]
        return found.view(len(picked), len(self.offsets), groups, -1).permute(2, 0, 1, 3).reshape(groups, -1, width)

    def select(self, y: Tensor, picked: Tensor) -> Tensor:
        """`y` [N, C, ...] on the layer's output cells (linear [..., C]) at `picked`: [P, C]."""
        if self.cells:
            y = y[
                (slice(None), slice(None), *(slice(f, None, s) for f, s in zip(self.phase, self.stride, strict=True)))
            ]
            y = y.movedim(1, -1)
        return y.reshape(-1, y.shape[-1])[picked]

    def answers(self, y: Tensor, picked: Tensor) -> Tensor:
        """The layer's output `y` at `picked` by rows: [G, P, R]."""
        return self.select(y, picked).view(len(picked), *self.channels.shape).transpose(0, 1)


def rows_of(node: Node) -> list[Rows]:
    """The rows of a layer with weights: one entry, or one for each stride phase of a transposed convolution."""
    kind, weight = kind_of(node) or "", value(node.args[1])
    numbers = torch.arange(weight.numel()).view(weight.shape)
    if kind == "linear":
        none = torch.zeros(1, 0, dtype=torch.long)
        return [Rows(numbers[None], torch.arange(weight.shape[0])[None], none, (), (), (), ())]
    attrs, cells, kernel = conv_attrs(node, kind), tuple(value(node).shape[2:]), tuple(weight.shape[2:])
    axes = range(len(kernel))
    if kind != "conv_transpose2d":
        channels = torch.arange(weight.shape[0]).view(attrs.groups, -1)
        offsets = [[t * attrs.dilation[a] - attrs.padding[a] for t in range(kernel[a])] for a in axes]
        index = numbers.movedim(1, -1).reshape(*channels.shape, -1)
        ones, zeros = tuple(1 for _ in axes), tuple(0 for _ in axes)
        return [
            Rows(index, channels, torch.tensor(list(itertools.product(*offsets))), attrs.stride, cells, zeros, ones)
        ]
    # output cell stride·m + phase reads input cell m + (phase + padding − dilation·tap) / stride where that is whole
    channels = torch.arange(weight.shape[1] * attrs.groups).view(attrs.groups, -1)
    shaped = numbers.view(attrs.groups, -1, *weight.shape[1:])  # [G, C_in/G, R, ...]
    found = []
    for phase in itertools.product(*(range(s) for s in attrs.stride)):
        reach = [[phase[a] + attrs.padding[a] - attrs.dilation[a] * t for t in range(kernel[a])] for a in axes]
        taps = [[t for t in range(kernel[a]) if reach[a][t] % attrs.stride[a] == 0] for a in axes]
        size = tuple(-(-(cells[a] - phase[a]) // attrs.stride[a]) for a in axes)
        if not all(taps) or min(size) < 1:
            continue
        offsets = [[reach[a][t] // attrs.stride[a] for t in taps[a]] for a in axes]
        index = shaped[:, :, :, taps[0]][..., taps[1]].movedim(1, -1).flatten(2)
        where = torch.tensor(list(itertools.product(*offsets)))
        found.append(Rows(index, channels, where, (1, 1), size, phase, attrs.stride))
    return found


@dataclass(slots=True)
class Gram:
    """Weighted means over output cells for one `Rows`; y is the float layer's output without its bias, r = y − Wx̂.

    weights: W [G, R, D]. quantized: E[x̂x̂ᵀ] [G, D, D]. residual: E[r x̂ᵀ] [G, R, D]. inputs: E[x̂] [G, D]. drift: E[r],
    error: E[r²], power: E[y²] [G, R].
    """

    rows: Rows
    weights: Tensor
    quantized: Tensor
    residual: Tensor
    inputs: Tensor
    drift: Tensor
    error: Tensor
    power: Tensor
    mass: float

    @classmethod
    def empty(cls, rows: Rows, weight: Tensor) -> Gram:
        """No cell seen yet; `weight` is the float layer's, in torch's layout. Sums are float64."""
        groups, count, width = rows.taps.shape
        shapes = ((groups, width, width), (groups, count, width), (groups, width), *3 * [(groups, count)])
        square, wide, line, drift, error, power = (torch.zeros(s, dtype=torch.float64) for s in shapes)
        return cls(rows, weight.reshape(-1)[rows.taps], square, wide, line, drift, error, power, 0.0)

    def add(self, seen: Tensor, wanted: Tensor, mass: Tensor) -> None:
        """Take in the quantized network's patches [G, P, D] and the wanted outputs [G, P, R], with `mass` [P] each."""
        left = wanted - seen @ self.weights.transpose(1, 2)
        heavy, left_heavy = seen * mass[:, None], left * mass[:, None]
        self.quantized += heavy.transpose(1, 2) @ seen
        self.residual += left_heavy.transpose(1, 2) @ seen
        self.inputs += heavy.sum(1)
        self.drift += left_heavy.sum(1)
        self.error += (left_heavy * left).sum(1)
        self.power += (wanted.square() * mass[:, None]).sum(1)
        self.mass += float(mass.sum())

    def finish(self) -> Gram:
        """Sums to means, float32."""
        parts = (self.quantized, self.residual, self.inputs, self.drift, self.error, self.power)
        mass = self.mass or 1.0  # no cell counts where a layer answers nothing: sums of nothing are 0
        square, wide, line, drift, error, power = ((p / mass).float() for p in parts)
        return Gram(self.rows, self.weights, square, wide, line, drift, error, power, 1.0)


def share_to_sample(rows: Rows, cells: int) -> float:
    """Which share of all `cells` of the calibration data enters the sums."""
    groups, _, width = rows.taps.shape
    affordable = PRODUCTS // (groups * width * width)
    return min(1.0, max(CELLS_PER_TAP * width, min(affordable, MOST_CELLS)) / cells)
