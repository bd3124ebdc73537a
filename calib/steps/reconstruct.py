"""Step `reconstruct`: gradient steps through a span move rounding, biases and activation scales together.

Li et al. 2021 (BRECQ, arXiv 2102.05426, section 3.2) reconstruct what several layers answer together; with the objective `tgpl`
the steps look through the float network behind the span, as in LiDAR-PTQ (Zhou et al. 2024, arXiv 2401.15865, section 3 and
algorithm 1). What does not help on frames held out is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, get_args

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.bench import Bench
from edgeq.calib.floats import Floats
from edgeq.calib.needs import DATA, NEIGHBOURS, POSITIVES
from edgeq.calib.objectives.mse import cell_mass, relative_error
from edgeq.calib.soft import Soft
from edgeq.calib.spans import Span
from edgeq.calib.twins import Numbers
from edgeq.calib.walk import Errors, Extent, Walk
from edgeq.calib.workspace import Part
from edgeq.spec import EdgeqError

HELD: Final = 4  # one run of frames in four judges instead of teaching
JUDGES: Final = 8  # runs of frames that judge, at most
LOOK_EVERY: Final = 4  # a run of frames goes through all of the network behind the span at every fourth of its turns
OBJECTIVES: Final = ("mse", "tgpl")


@dataclass(frozen=True, slots=True)
class Reconstruct:
    """extent: what is judged together: a `layer`, a `block` between two cuts of the network, two blocks (`cross-block`).

    objectives: what must stay the same: `mse` of the span's output, `tgpl` of the network's answers beside it.
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
        unknown = [name for name in self.objectives if name not in OBJECTIVES]
        if unknown or "mse" not in self.objectives:
            raise EdgeqError(f"reconstruct: objectives are {list(self.objectives)}; use mse, or mse and tgpl")
        if self.steps < 1 or self.batch < 1:
            raise EdgeqError(f"reconstruct: {self.steps} steps on {self.batch} frames; use 1 or more of each")

    @property
    def needs(self) -> frozenset[str]:
        """Data, codes to learn between, and positives for the task-guided loss."""
        return frozenset({DATA, NEIGHBOURS} | ({POSITIVES} if "tgpl" in self.objectives else set()))

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
        self.twins, self.numbers, self.task = walk.twins, walk.numbers, walk.bench.task
        self.masses: dict[tuple[Node, int], Tensor] = {}  # of cells, by output and first frame

    def learn(self, part: Part) -> Errors:
        """Gradient steps from the numbers found so far, kept where judges agree; the local loss of these before and after."""
        soft = Soft(self.numbers, self.span, self._free_scales(), self._units())
        teachers, judges = self._teachers_and_judges()
        with torch.no_grad():
            parts = torch.stack([self._loss(self.numbers, *r) for r in judges]).mean(0)
        weight = torch.where(parts > 0, 1.0 / parts, 0.0)  # local and task-guided loss count alike, 1 each at the start

        def loss(step: int) -> Tensor:
            """What the step's frames say; the task-guided loss, by far the dearer, in one turn of four but fourfold."""
            turn, run = divmod(step, len(teachers))
            look = (turn + run) % LOOK_EVERY == 0
            both = self._loss(soft, *teachers[run], look=look)
            return (both * weight * torch.tensor([1.0, LOOK_EVERY])).sum()

        soft.learn(loss, self.step.steps, part)
        found = soft.hard()
        if not self.walk.ratios_hold(found):
            found.activations = dict(self.numbers.resolved.activations)
        trial = Numbers(self.numbers.captured, self.numbers.annotation, found)
        with torch.no_grad():
            after = torch.stack([self._loss(trial, *r) for r in judges]).mean(0)
        if float((after * weight).sum()) >= float((parts * weight).sum()):
            return float(parts[0]), float(parts[0])
        self.numbers.resolved.update(found)
        self.twins.advance(self.span.nodes, real=False)
        return float(parts[0]), float(after[0])

    def _teachers_and_judges(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Runs of frames to learn from and to judge by; both have positives where the task-guided loss needs them."""
        runs = [(a, min(a + self.step.batch, b)) for a, b in self.twins.chunks(self.step.batch)]
        guiding = [r for r in runs if self.task is None or self.task.guides(*r)]
        runs = guiding + [r for r in runs if r not in guiding]
        judges = runs[::HELD][:JUDGES]
        return ([r for i, r in enumerate(runs) if i % HELD] if len(guiding) >= HELD else runs), judges

    def _loss(self, numbers: Numbers, start: int, stop: int, *, look: bool = True) -> Tensor:
        """Local and task-guided loss of frames `start` to `stop` with the span as `numbers` have it, float32 [2].

        look: false leaves the task-guided loss out, as 0.
        """
        twins, inside = self.twins, set(self.span.nodes)
        values = {i: twins.seen(i, start, stop) for i in _outside(self.span.nodes)}
        values = twins.run(self.span.nodes, values, lambda node, look: twins.quantized_node(node, look, numbers))
        error, power = torch.zeros(()), torch.zeros(())
        for node in self.span.nodes:
            if not set(node.users) <= inside:
                wanted = twins.real(node, start, stop)
                if not isinstance(wanted, Tensor):  # several results: chunk, split, max along an axis
                    for part, real in zip(values[node], wanted, strict=True):
                        if real.is_floating_point():
                            more, size = relative_error(part, real, None)
                            error, power = error + more, power + size
                    continue
                if self.step.balanced and (node, start) not in self.masses:
                    step = self.numbers.qparams(node).step if node in self.numbers.makers else 0.0
                    self.masses[node, start] = cell_mass(wanted, step)
                more, size = relative_error(values[node], wanted, self.masses.get((node, start)))
                error, power = error + more, power + size
        local = error / power.clamp(min=torch.finfo(torch.float32).tiny)
        guided = look and self.task is not None
        return torch.stack([local, self._task(values, start, stop) if guided else torch.zeros(())])

    def _free_scales(self) -> list[Node]:
        """Tensor sets that this span alone produces and whose numbers no kernel insists on."""
        if not self.step.activations:
            return []
        tensors, inside = self.numbers.annotation.tensors, set(self.span.nodes)
        sets: dict[Node, set[Node]] = {}
        for node in tensors.parent:
            sets.setdefault(tensors.find(node), set()).add(node)
        return [root for root, members in sets.items() if members <= inside and root not in tensors.fixed]

    def _task(self, values: dict[Node, Tensor], start: int, stop: int) -> Tensor:
        """The task-guided loss: what lies behind the span computes in float on what the span gives."""
        assert self.task is not None
        if not self.task.guides(start, stop):
            return torch.zeros(())
        inside = set(self.span.nodes)
        rest = [n for n in self.twins.nodes if n not in self.walk.done and n not in inside]
        known = {i: values[i] if i in inside else self.twins.seen(i, start, stop) for i in _outside(rest)}
        found = self.twins.run(rest, known, self.twins.floats.node)
        results = self.numbers.captured.module.graph.output_node().args[0]
        outputs = {i: found.get(n, values.get(n)) for i, n in enumerate(results)}  # type: ignore[arg-type] # a tuple of nodes
        return self.task.loss({i: y for i, y in outputs.items() if y is not None}, start, stop)

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


def _outside(nodes: Sequence[Node]) -> list[Node]:
    """What `nodes` read that they do not compute, constants left out."""
    inside = set(nodes)
    return list(dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in inside and i.op != "get_attr"))
