"""Step `reconstruct`: gradient steps through a span move rounding, biases and activation scales together.

Li et al. 2021 (BRECQ, arXiv 2102.05426, section 3.2) reconstruct what several layers answer together. What must stay the same
is an objective's to say (edgeq.calib.objectives); for one that looks at the network's own outputs the steps go through the
float network behind the span, as in LiDAR-PTQ (Zhou et al. 2024, arXiv 2401.15865, section 3 and algorithm 1). What does not
help on frames held out is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, get_args

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.bench import Bench
from edgeq.calib.floats import Floats
from edgeq.calib.needs import DATA, NEIGHBOURS
from edgeq.calib.objectives import names, objective
from edgeq.calib.soft import Soft
from edgeq.calib.spans import Span
from edgeq.calib.twins import Numbers
from edgeq.calib.view import View
from edgeq.calib.walk import Errors, Extent, Walk
from edgeq.calib.workspace import Part
from edgeq.spec import EdgeqError

HELD: Final = 4  # one run of frames in four judges instead of teaching
JUDGES: Final = 8  # runs of frames that judge, at most
LOOK_EVERY: Final = 4  # a run of frames goes through all of the network behind the span at every fourth of its turns


@dataclass(frozen=True, slots=True)
class Reconstruct:
    """extent: what is judged together: a `layer`, a `block` between two cuts of the network, two blocks (`cross-block`).

    objectives: what must stay the same, of edgeq.calib.objectives; several count alike, and the first one's loss is told.
    balanced: empty cells of a sparse map weigh at most as much together as the occupied ones. steps: gradient steps a span.
    batch: frames in one of these, at most. activations: they learn the scales of the span's activations as well.
    """

    learns: ClassVar[bool] = True
    extent: Extent = "layer"
    objectives: tuple[str, ...] = ("mse",)
    balanced: bool = False
    steps: int = 150
    batch: int = 4
    activations: bool = False

    def __post_init__(self) -> None:
        """Raise EdgeqError where an option has no meaning."""
        if self.extent not in get_args(Extent):
            raise EdgeqError(f"reconstruct: extent is {self.extent!r}; use {', '.join(get_args(Extent))}")
        if not self.objectives:
            raise EdgeqError(f"reconstruct: there is no objective; use one or more of {', '.join(names())}")
        for name in self.objectives:
            objective(name)
        if self.steps < 1 or self.batch < 1:
            raise EdgeqError(f"reconstruct: {self.steps} steps on {self.batch} frames; use 1 or more of each")

    @property
    def needs(self) -> frozenset[str]:
        """Data, codes to learn between, and what the objectives ask for."""
        return frozenset({DATA, NEIGHBOURS}).union(*(objective(name).needs for name in self.objectives))

    def run(self, bench: Bench) -> Reconstruct:
        """All is done on the walk."""
        return self

    def frames(self, floats: Floats) -> None:
        """All of them."""

    def layer(self, walk: Walk, node: Node) -> None:
        """A layer by itself stays as it is."""

    def close(self, walk: Walk, span: Span, part: Part) -> Errors:
        """Learn a span's numbers from those found so far; its local loss before and after."""
        return _Learning(self, walk, span).learn(part)


class _Learning:
    """One span whose numbers are learned, kept where judges agree."""

    def __init__(self, step: Reconstruct, walk: Walk, span: Span) -> None:
        self.step, self.walk, self.span = step, walk, span
        self.twins, self.numbers = walk.twins, walk.numbers
        self.objectives = [walk.bench.objectives[name] for name in step.objectives]
        self.view = View(self.twins, span, walk.done, balanced=step.balanced)

    def learn(self, part: Part) -> Errors:
        """Gradient steps from the numbers found so far, kept where judges agree; the first objective before and after."""
        soft = Soft(self.numbers, self.span, self._free_scales(), self._units())
        teachers, judges = self._teachers_and_judges()
        for each in self.objectives:
            each.begin(self.view, self.step.batch)
        with torch.no_grad():
            parts = torch.stack([self._losses(self.numbers, *r) for r in judges]).mean(0)
        weight = torch.where(parts > 0, 1.0 / parts, 0.0)  # objectives count alike, 1 each at the start
        often = torch.tensor([LOOK_EVERY if each.behind else 1.0 for each in self.objectives])

        def loss(step: int) -> Tensor:
            """What the step's frames say; objectives behind the span, by far the dearer, in one turn of four but fourfold."""
            turn, run = divmod(step, len(teachers))
            look = (turn + run) % LOOK_EVERY == 0
            losses = self._losses(soft, *teachers[run], look=look)
            return (losses * weight * often).sum()

        soft.learn(loss, self.step.steps, part)
        found = soft.hard()
        if not self.walk.ratios_hold(found):
            found.activations = dict(self.numbers.resolved.activations)
        trial = Numbers(self.numbers.captured, self.numbers.annotation, found)
        with torch.no_grad():
            after = torch.stack([self._losses(trial, *r) for r in judges]).mean(0)
        if not float((after * weight).sum()) < float((parts * weight).sum()):  # NaN, of a scale next to 0, is no gain
            return float(parts[0]), float(parts[0])
        self.numbers.resolved.update(found)
        self.twins.advance(self.span.nodes, real=False)
        return float(parts[0]), float(after[0])

    def _teachers_and_judges(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Runs of frames to learn from and to judge by; among both are some that say something to every objective."""
        runs = [(a, min(a + self.step.batch, b)) for a, b in self.twins.chunks(self.step.batch)]
        guiding = [r for r in runs if all(each.guides(*r) for each in self.objectives)]
        runs = guiding + [r for r in runs if r not in guiding]
        judges = runs[::HELD][:JUDGES]
        return ([r for i, r in enumerate(runs) if i % HELD] if len(guiding) >= HELD else runs), judges

    def _losses(self, numbers: Numbers, start: int, stop: int, *, look: bool = True) -> Tensor:
        """Each objective's loss of frames `start` to `stop` with the span as `numbers` have it, float32 [objectives].

        look: false leaves out those that look behind the span, as 0.
        """
        values = self.view.run(numbers, start, stop)
        asked = [(look or not each.behind) and each.guides(start, stop) for each in self.objectives]
        return torch.stack(
            [
                each.loss(self.view, values, start, stop) if ask else torch.zeros(())
                for each, ask in zip(self.objectives, asked, strict=True)
            ]
        )

    def _free_scales(self) -> list[Node]:
        """Tensor sets that this span alone produces and whose numbers no kernel insists on."""
        if not self.step.activations:
            return []
        tensors, inside = self.numbers.annotation.tensors, set(self.span.nodes)
        sets: dict[Node, set[Node]] = {}
        for node in tensors.parent:
            sets.setdefault(tensors.find(node), set()).add(node)
        return [root for root, members in sets.items() if members <= inside and root not in tensors.fixed]

    def _units(self) -> dict[Node, float]:
        """For each layer the step of its output's grid; where it has none, 1/256 of the float output's size."""
        units = {}
        for node in self.span.layers:
            group = self.numbers.groups.get(node)
            if group is not None:
                units[node] = self.numbers.qparams(group.output).step
            else:
                units[node] = float(self.twins.real(node, 0, 1).square().mean().sqrt()) / 256
        return units
