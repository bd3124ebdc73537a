"""A span as objectives see it: what it answers beside the float network, and what follows from its answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from edgeq.calib.cells import cell_mass
from edgeq.calib.spans import Span
from edgeq.calib.twins import Numbers, Twins


@dataclass(frozen=True, slots=True)
class Answer:
    """A tensor that a span gives to others, for some frames: as it is `found`, and as float has it.

    name: its node's, and which of several results it is. mass: weight of each cell [N, ...]; None: 1.
    """

    name: str
    found: Tensor
    wanted: Tensor
    mass: Tensor | None


class View:
    """A span between what is `done` before it and what lies behind. balanced: cells of sparse maps have a mass."""

    def __init__(self, twins: Twins, span: Span, done: Collection[Node], *, balanced: bool) -> None:
        """Both sides of `twins` have computed the span and what it reads."""
        self.twins, self.span, self.balanced = twins, span, balanced
        self.inside = set(span.nodes)
        self.ends = [node for node in span.nodes if not set(node.users) <= self.inside]  # which others read
        self.behind = [n for n in twins.nodes if n not in done and n not in self.inside]
        self.masses: dict[tuple[Node, int], Tensor] = {}  # of cells, by answer and first frame

    def run(self, numbers: Numbers, start: int, stop: int) -> dict[Node, Any]:
        """What the span's nodes give for frames `start` to `stop` where it computes with `numbers`."""
        values = {i: self.twins.seen(i, start, stop) for i in _outside(self.span.nodes)}
        return self.twins.run(
            self.span.nodes, values, lambda node, look: self.twins.quantized_node(node, look, numbers)
        )

    def answers(self, values: Mapping[Node, Any], start: int, stop: int) -> Iterator[Answer]:
        """The span's answers among `values`, for frames `start` to `stop`."""
        for node in self.ends:
            wanted = self.twins.real(node, start, stop)
            if isinstance(wanted, Tensor):
                yield Answer(node.name, values[node], wanted, self._mass(node, wanted, start))
                continue
            for index, (part, real) in enumerate(
                zip(values[node], wanted, strict=True)
            ):  # chunk, split, max along an axis
                if real.is_floating_point():
                    yield Answer(f"{node.name} {index}", part, real, None)

    def outputs(
        self, values: Mapping[Node, Any], look: Callable[[Node, int, int], Any], start: int, stop: int
    ) -> dict[int, Tensor]:
        """The outputs that can still change, by their index, in float on the span's `values` for frames `start` to `stop`.

        look: gives what else is read behind the span, `seen` or `real` of the twins.
        """
        known = {i: values[i] if i in self.inside else look(i, start, stop) for i in _outside(self.behind)}
        found = self.twins.run(self.behind, known, self.twins.floats.node)
        results = self.twins.numbers.captured.module.graph.output_node().args[0]
        outputs = {i: found.get(n, values.get(n)) for i, n in enumerate(results)}  # type: ignore[arg-type] # a tuple of nodes
        return {i: y for i, y in outputs.items() if y is not None}

    def _mass(self, node: Node, wanted: Tensor, start: int) -> Tensor | None:
        if not self.balanced:
            return None
        if (node, start) not in self.masses:
            numbers = self.twins.numbers
            step = numbers.qparams(node).step if node in numbers.makers else 0.0
            self.masses[node, start] = cell_mass(wanted, step)
        return self.masses[node, start]


def _outside(nodes: Sequence[Node]) -> list[Node]:
    """What `nodes` read that they do not compute, constants left out."""
    inside = set(nodes)
    return list(dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in inside and i.op != "get_attr"))
