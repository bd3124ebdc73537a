"""A span whose rounding, biases and activation scales can still move, and the gradient steps that move them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.solvers.adaround import beta, harden, soften
from edgeq.calib.spans import Span
from edgeq.calib.twins import Numbers
from edgeq.calib.workspace import Part
from edgeq.graph.coded import Coded
from edgeq.graph.numbers import Resolved
from edgeq.graph.ops import constant
from edgeq.graph.ordered import parted
from edgeq.spec import QParams

CERTAIN: Final = 0.85  # h of a weight whose rounding says up, before the first step; 1 - CERTAIN where it says down
WEIGHT_RATE: Final = 3e-2
BIAS_RATE: Final = 1e-2  # in steps of the layer's output
MOMENTS: Final = ("step", "exp_avg", "exp_avg_sq")  # what torch's Adam keeps of a variable
SCALE_RATE: Final = 1e-3  # of an eight-bit scale's logarithm; faster where the grid is coarser, see `_pace`


class Soft(Numbers):
    """`numbers` with those of one span as variables: a differentiable stand-in for the quantized network.

    A scale learns as in Esser et al. 2020 (LSQ, arXiv 1902.08153, section 2.1): rounding passes the gradient on unchanged.
    """

    def __init__(
        self,
        numbers: Numbers,
        span: Span,
        scales: Iterable[Node],
        units: dict[Node, float],
    ) -> None:
        """`scales`: representatives of the tensor sets whose scale may move. `units`: a bias step for each layer."""
        super().__init__(numbers.captured, numbers.annotation, numbers.resolved)
        self.span, self.units = span, units
        self.floors: dict[Node, Tensor] = {}
        self.rooms: dict[Node, Tensor] = {}
        self.rounding: dict[Node, Tensor] = {}
        self.biases: dict[Node, Tensor] = {}
        for node in span.layers:
            key, _ = self.weighted[node]
            coded = self.resolved.weights[key]
            integers = coded.codes.float()
            exact = constant(self.captured.module, node.args[1]) / coded.scale  # type: ignore[arg-type] # a constant
            floor = torch.floor(exact).clamp(coded.grid.qmin, coded.grid.qmax - 1)
            up = integers - floor
            near = (up == 0) | (up == 1)  # what lies further off stays where it is
            self.floors[node] = torch.where(near, floor, integers)
            self.rooms[node] = near.float()
            start = torch.where(up > 0.5, CERTAIN, 1 - CERTAIN)
            self.rounding[node] = harden(start).requires_grad_()
            bias = super().constants(node)[1]
            if bias is not None:
                self.biases[node] = torch.zeros_like(bias).requires_grad_()
        self.scales = {root: torch.zeros(()).requires_grad_() for root in scales}

    def activation(self, node: Node, x: Tensor) -> Tensor:
        """`x` on its grid, the gradient passed on inside the grid's ends and into the scale."""
        qparams = self.qparams(node)
        scale = torch.tensor(qparams.step)
        moved = self.scales.get(self.annotation.tensors.find(node))
        if moved is not None:
            scale = scale * (moved * self._pace(qparams)).exp()
        steps = x / scale
        rounded = steps + (torch.round(steps) - steps).detach()
        zero = qparams.zero
        return rounded.clamp(qparams.qmin - zero, qparams.qmax - zero) * scale

    def constants(self, node: Node) -> tuple[Tensor, Tensor | None]:
        """Weights between their two neighbours and a bias that moves, for layers of the span."""
        weight, bias = super().constants(node)
        if node not in self.rounding:
            return weight, bias
        scale = self.resolved.weights[self.weighted[node][0]].scale
        weight = (self.floors[node] + soften(self.rounding[node]) * self.rooms[node]) * scale
        return weight, bias + self.biases[node] * self.units[node] if bias is not None else None

    def regulariser(self, done: float) -> Tensor:
        """Mean over the weights of 1 − |2h − 1|^β after a share `done` of the steps (AdaRound, equation 24)."""
        power = beta(done)
        sides = [2 * soften(v) - 1 for v in self.rounding.values()]
        total = torch.stack([(1 - s.abs().clamp(min=1e-6) ** power).sum() for s in sides]).sum()
        return total / sum(s.numel() for s in sides)

    def hard(self) -> Resolved:
        """A copy of the resolved numbers with the span's at the grid points nearest to the variables."""
        resolved = self.resolved.copy()
        with torch.no_grad():
            for node, v in self.rounding.items():
                key, _ = self.weighted[node]
                up = (soften(v) >= 0.5) * self.rooms[node]
                old = resolved.weights[key]
                resolved.weights[key] = Coded(
                    old.grid, (self.floors[node] + up).to(old.codes.dtype), old.scale, old.zero
                )
                if node in self.biases:
                    bias = super().constants(node)[1]
                    assert bias is not None
                    resolved.biases[key] = bias + self.biases[node] * self.units[node]
            for root, moved in self.scales.items():
                grid = resolved.activations[root.name]
                scale = float(torch.tensor(grid.step) * (moved * self._pace(grid)).exp())
                resolved.activations[root.name] = dataclasses.replace(grid, scale=(scale,))
        return resolved

    @parted()
    def learn(self, loss: Callable[[int], Tensor], steps: int, part: Part) -> None:
        """Adam on `loss(step)` plus the regulariser, from where `part` says that an interrupted run was."""
        adam = torch.optim.Adam(
            [
                {"params": list(self.rounding.values()), "lr": WEIGHT_RATE},
                {"params": list(self.biases.values()), "lr": BIAS_RATE},
                {"params": list(self.scales.values()), "lr": SCALE_RATE},
            ]
        )
        rates = [g["lr"] for g in adam.param_groups]
        variables = {
            f"{kind} {node.name}": v
            for kind, table in (("rounding", self.rounding), ("bias", self.biases), ("scale", self.scales))
            for node, v in table.items()
        }
        _restore(adam, variables, part)
        for step in range(part.step, steps):
            fading = 0.5 * (1 + math.cos(math.pi * step / steps))
            for group, rate in zip(adam.param_groups[1:], rates[1:], strict=True):
                group["lr"] = rate * fading
            adam.zero_grad()
            total = loss(step) + self.regulariser(step / steps)
            total.backward()  # type: ignore[no-untyped-call] # torch's
            adam.step()
            part.stepped(step + 1, lambda: _state(adam, variables))

    @staticmethod
    def _pace(qparams: QParams) -> float:
        """A scale learns at 1/√levels of its grid, 1 at eight bits (LSQ, section 2.2: gradients by 1/√(N·Q))."""
        return math.sqrt(255 / (qparams.qmax - qparams.qmin))


def _state(adam: torch.optim.Adam, variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the variables and of what Adam knows of each."""
    found = {name: v.detach().clone() for name, v in variables.items()}
    for name, v in variables.items():
        found |= {f"{name} {moment}": adam.state[v][moment].clone() for moment in MOMENTS if moment in adam.state[v]}
    return found


def _restore(adam: torch.optim.Adam, variables: dict[str, Tensor], part: Part) -> None:
    """What `_state` gave, back in its place."""
    if not part.step:
        return
    with torch.no_grad():
        for name, v in variables.items():
            v.copy_(part.state[name])
            adam.state[v] = {m: part.state[f"{name} {m}"] for m in MOMENTS if f"{name} {m}" in part.state}
