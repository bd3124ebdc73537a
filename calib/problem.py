"""A layer's rounding problem: which codes, when the layer is to answer as it did in float.

The error of codes is a quadratic of the weights they stand for (edgeq.calib.gram), separate for each output channel but for the
inputs they share. A solver (edgeq.calib.solvers) takes the problem and codes to start from, and returns codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from edgeq.calib.gram import Gram
from edgeq.graph.coded import Coded, along, spread
from edgeq.spec import Grid

DAMPING: Final = 0.01  # of the inputs' mean square, so that a matrix of few cells can be inverted (GPTQ, section 3.3)
LEAST: Final = 1e-5  # of it with the means, whose rounding is left where inputs hardly vary


@dataclass(slots=True)
class Part:
    """One Gram's weights in steps of their scales: real = scale · (floor + h · room), h in [0, 1]; each [G, R, D]."""

    gram: Gram
    scale: Tensor
    floor: Tensor
    room: Tensor

    def drift(self, weights: Tensor) -> Tensor:
        """Mean of Ŵx̂ − y, [G, R]."""
        return ((weights - self.gram.weights) @ self.gram.inputs[..., None])[..., 0] - self.gram.drift

    def error(self, weights: Tensor, shift: Tensor) -> Tensor:
        """Mean squared output error of each row [G, R] where the bias moves by `shift` [G, R]."""
        gram, moved = self.gram, weights - self.gram.weights
        square = ((moved @ gram.quantized - 2 * gram.residual) * moved).sum(-1) + gram.error
        return square + 2 * shift * self.drift(weights) + shift.square()

    def slope(self, weights: Tensor, shift: Tensor) -> Tensor:
        """Gradient of `error` with respect to the weights, [G, R, D]."""
        gram = self.gram
        moved = (weights - gram.weights) @ gram.quantized - gram.residual
        return 2 * (moved + shift[..., None] * gram.inputs[:, None])

    def quadratic(self, *, bias: bool) -> tuple[Tensor, Tensor]:
        """The error as (ŵ − w)ᵀH(ŵ − w) and a constant: H [G, D, D], damped, and the float weights w of least error [G, R, D].

        bias: it moves along, which takes the inputs' means out of both.
        """
        gram = self.gram
        hessian, residual = gram.quantized, gram.residual
        if bias:
            hessian = hessian - gram.inputs[:, :, None] * gram.inputs[:, None]
            residual = residual - gram.drift[..., None] * gram.inputs[:, None]
        size, whole = (h.diagonal(dim1=1, dim2=2).mean(-1) for h in (hessian, gram.quantized))
        damping = torch.maximum(DAMPING * size, LEAST * whole).clamp(min=torch.finfo(torch.float32).tiny)
        hessian = hessian + torch.diag_embed(damping[:, None].expand(hessian.shape[:2]))
        return hessian, gram.weights + torch.linalg.solve(hessian, residual, left=False)


class Problem:
    """A layer's weights, and how the layer's answers depend on them.

    weight: float32 in torch's layout; output channels lie along `axis`. bias: the layer has one, which may move. parts: its
    rows with their sums over the data; empty for a solver that asks for none.
    """

    def __init__(
        self, weight: Tensor, axis: int, start: Coded, grams: Sequence[Gram] = (), *, bias: bool = False
    ) -> None:
        """start: codes of the weight; its grid and scales are the problem's."""
        self.weight, self.axis, self.start, self.bias = weight, axis, start, bias
        scale = spread(start.scale, weight.shape).expand_as(weight)
        self.parts = []
        for gram in grams:
            taken = scale.reshape(-1)[gram.rows.taps]
            floor = torch.floor(gram.weights / taken).clamp(self.grid.qmin, self.grid.qmax)
            self.parts.append(Part(gram, taken, floor, (floor < self.grid.qmax).float()))

    @property
    def grid(self) -> Grid:
        """Which codes there are."""
        return self.start.grid

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.weight.shape[self.axis]

    def split(self, weight: Tensor) -> list[Tensor]:
        """A tensor in torch's layout as rows."""
        return [weight.reshape(-1)[p.gram.rows.taps] for p in self.parts]

    def join(self, rows: Sequence[Tensor], like: Tensor) -> Tensor:
        """Rows back in torch's layout; weights that no output cell meets stay as in `like`."""
        flat = like.reshape(-1).clone()
        for part, row in zip(self.parts, rows, strict=True):
            flat[part.gram.rows.taps.reshape(-1)] = row.reshape(-1).to(flat.dtype)
        return flat.view(like.shape)

    def coded(self, rows: Sequence[Tensor]) -> Coded:
        """Rows of codes as the start's successor: same grid, same scales."""
        return Coded(self.grid, self.join(rows, self.start.codes), self.start.scale, self.start.zero)

    def shift(self, weights: Sequence[Tensor]) -> Tensor:
        """How far the bias should move for real weights by rows, float32 [C]: the mean output error away, where there is one."""
        total = torch.zeros(self.channels)
        if self.bias:
            for part, row in zip(self.parts, weights, strict=True):
                total.index_add_(0, part.gram.rows.channels.reshape(-1), part.drift(row).reshape(-1))
        return -total / len(self.parts)

    def errors(self, weights: Sequence[Tensor], shift: Tensor | None = None) -> Tensor:
        """Mean squared output error of each channel for real weights by rows, float32 [C]; shift: of the bias, None: the best."""
        shift = self.shift(weights) if shift is None else shift
        total = torch.zeros(self.channels)
        for part, row in zip(self.parts, weights, strict=True):
            found = part.error(row, shift[part.gram.rows.channels])
            total.index_add_(0, part.gram.rows.channels.reshape(-1), found.reshape(-1))
        return total / len(self.parts)

    def better(self, one: Coded, errors: Tensor, other: Coded, others: Tensor) -> tuple[Coded, Tensor]:
        """Of two codings, each channel from the one with the smaller error [C] (the first where they tie), and these errors."""
        take = along(others < errors, self.axis, self.weight.dim())
        codes, scale = torch.where(take, other.codes, one.codes), torch.where(take, other.scale, one.scale)
        return Coded(self.grid, codes, scale, one.zero), torch.minimum(errors, others)

    @property
    def power(self) -> float:
        """Mean square of the float layer's output, bias left out, summed over channels."""
        return sum(float(p.gram.power.sum()) for p in self.parts) / len(self.parts)
