"""Step `ends`: the first and the last layers of a network keep a higher precision than the rest, as in many methods."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import Node

from edgeq.calib.bench import Bench
from edgeq.graph.capture import Captured
from edgeq.graph.kinds import role_of
from edgeq.graph.ops import kind_of
from edgeq.spec import QuantPlan, Recipe, precision


@dataclass(frozen=True, slots=True)
class Ends:
    """precision: the least that first and last layers get where no plan says otherwise."""

    needs: ClassVar[frozenset[str]] = frozenset()
    precision: str = "w8a8"

    def __post_init__(self) -> None:
        """Raise EdgeqError where there is no such precision."""
        precision(self.precision)

    def run(self, bench: Bench) -> None:
        """The plan holds it already, see `planned`."""


def planned(captured: Captured, plan: QuantPlan, recipe: Recipe) -> QuantPlan:
    """`plan` with the ends as the recipe's steps want them; the network is annotated by it."""
    for step in recipe.steps:
        plan = with_ends(captured, plan, step.precision) if isinstance(step, Ends) else plan
    return plan


def ends(captured: Captured) -> set[str]:
    """Layer keys of weighted layers that no weighted layer comes before, and of those that none comes after.

    A network with several inputs or heads has several of each.
    """
    nodes = [n for n in captured.module.graph.nodes if n.op == "call_function"]
    weighted = {n for n in nodes if role_of(kind_of(n)) == "layer"}
    behind: set[Node] = set()  # a layer with weights lies before it, or it is one
    ahead: set[Node] = set()
    for node in nodes:
        if node in weighted or any(i in behind for i in node.all_input_nodes):
            behind.add(node)
    for node in reversed(nodes):
        if node in weighted or any(u in ahead for u in node.users):
            ahead.add(node)
    first = {n for n in weighted if not any(i in behind for i in n.all_input_nodes)}
    last = {n for n in weighted if not any(u in ahead for u in n.users)}
    return {captured.keys[n.name] for n in first | last}


def with_ends(captured: Captured, plan: QuantPlan, least: str) -> QuantPlan:
    """`plan` with no first or last layer of fewer bits than precision `least`, weights or activations; fp32 keeps them in float.

    A layer's activations are what it reads and what it answers, so the network's own inputs and outputs are among them.
    Zhou et al. 2024 (LiDAR-PTQ, arXiv 2401.15865, section 4) keep both in full precision, which a runtime pays for with a float
    island at its largest map; eight bits are what BRECQ (Li et al. 2021, arXiv 2102.05426, section 4) gives them.
    """
    chosen, wanted = ends(captured), precision(least)

    def kept(key: str, name: str) -> str:
        planned = precision(name)
        if key not in chosen or planned.weight is None:
            return name
        if wanted.weight is None or wanted.activation is None:
            return least
        weight = max(wanted.weight.bits, planned.weight.bits)
        if planned.activation is None:
            return f"w{weight}"
        return f"w{weight}a{max(wanted.activation.bits, planned.activation.bits)}"

    return dataclasses.replace(plan, layers={k: kept(k, name) for k, name in plan.layers.items()})
