"""What a search chooses between: layers that choose together, the precisions each can have, and where two of them meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Node

from edgeq.graph.annotate import Annotation, Group, leftover
from edgeq.graph.capture import Captured
from edgeq.graph.kinds import role_of, weights_of
from edgeq.graph.ops import node_arg, value
from edgeq.graph.work import macs
from edgeq.spec import EdgeqError, Precision, QuantPlan, Target, precision

Choice = Mapping[str, str]  # unit → precision
FLOAT = "fp32"


@dataclass(frozen=True, slots=True)
class Unit:
    """Layers that choose one precision together: one with weights, or a product of two tensors, and what follows until the next.

    name: layer key of the first with weights (of the first, where none has). layers: all keys.
    plans: precision → what each layer's line in the plan is then. sizes: precision → bytes of weights, biases and scales.
    macs: multiply-accumulates of one inference.
    """

    name: str
    layers: tuple[str, ...]
    plans: Mapping[str, Mapping[str, str]]
    sizes: Mapping[str, int]
    macs: int

    @property
    def integers(self) -> frozenset[str]:
        """The precisions in which its activations are integers."""
        return frozenset(name for name in self.plans if precision(name).activation is not None)


@dataclass(frozen=True, slots=True)
class Border:
    """A tensor of `values` elements that one unit makes and another reads: converted where only one of them is in integers."""

    source: str
    reader: str
    values: int


@dataclass(frozen=True)
class Space:
    """units: in the network's order. base: the plan with all of them in integers, as `quantize` would make it."""

    units: tuple[Unit, ...]
    borders: tuple[Border, ...]
    base: QuantPlan

    @cached_property
    def precisions(self) -> tuple[str, ...]:
        """All that some unit can have, in the order in which they were named."""
        return tuple(dict.fromkeys(name for unit in self.units for name in unit.plans))

    @property
    def free(self) -> tuple[Unit, ...]:
        """The units that have a choice."""
        return tuple(unit for unit in self.units if len(unit.plans) > 1)

    def uniform(self, name: str) -> dict[str, str]:
        """Every unit in one precision, as far as it can; the others in their first."""
        return {unit.name: name if name in unit.plans else next(iter(unit.plans)) for unit in self.units}

    def without(self, name: str) -> Space:
        """The same without a precision, where units have another."""
        units = [
            dataclasses.replace(unit, plans={n: lines for n, lines in unit.plans.items() if n != name} or unit.plans)
            for unit in self.units
        ]
        return dataclasses.replace(self, units=tuple(units))

    def plan(self, choice: Choice) -> QuantPlan:
        """A plan that says so, a line for every layer."""
        layers = dict(self.base.layers)
        for unit in self.units:
            layers.update(unit.plans[choice[unit.name]])
        return dataclasses.replace(self.base, layers=layers)

    def size(self, choice: Choice) -> int:
        """Bytes of weights, biases and scales of the units."""
        return sum(unit.sizes[choice[unit.name]] for unit in self.units)


def space(captured: Captured, annotation: Annotation, target: Target, base: QuantPlan, wanted: Sequence[str]) -> Space:
    """The units of a network as `annotation`, of `base`, has it in integers, and the borders between them.

    wanted: precisions to choose between.

    Raises:
        EdgeqError: nothing of it computes in integers, or no layer has a choice.
    """
    found, borders = [], _Borders()
    for members in _units(annotation.groups):
        heads = [g for g in members if _heads(g)] or members[:1]
        options, sizes = {}, {}
        for name in wanted:
            given = precision(name)
            if all(_can(head, given, target) for head in heads):
                options[name] = {
                    captured.keys[n.name]: _line(g, n, given, target)
                    for g in members
                    for n in g.nodes
                    if n.name in captured.keys
                }
                sizes[name] = sum(_bytes(g, given) for g in heads)
        if not options:
            raise EdgeqError(
                f"layer {heads[0].key!r} can have none of {', '.join(wanted)} on target {target.name}: add --precision {FLOAT}"
            )
        keys = tuple(next(iter(options.values())))
        found.append(Unit(heads[0].key, keys, options, sizes, sum(macs(g.node) for g in members)))
        borders.add(heads[0].key, members)
    if not found:
        raise EdgeqError(
            f"target {target.name} computes nothing of this network in integers, so there is nothing to choose"
        )
    if all(len(unit.plans) < 2 for unit in found):
        raise EdgeqError(
            f"no layer has a choice between {', '.join(wanted)}: name precisions that target {target.name} computes, as "
            "--precision w8a8 --precision fp32"
        )
    return Space(tuple(found), borders.found(), base)


def planned(captured: Captured, annotation: Annotation, plan: QuantPlan) -> Space:
    """The units of a plan as it is, each with the precision that it has there and float; `annotation` is the plan's."""
    found, borders = [], _Borders()
    for members in _units(annotation.groups):
        head = next((g for g in members if _heads(g)), members[0])
        keys = [captured.keys[n.name] for g in members for n in g.nodes if n.name in captured.keys]
        options = {head.precision.name: {key: plan.layers[key] for key in keys}, FLOAT: dict.fromkeys(keys, FLOAT)}
        sizes = {name: _bytes(head, precision(name)) for name in options}
        found.append(Unit(head.key, tuple(keys), options, sizes, sum(macs(g.node) for g in members)))
        borders.add(head.key, members)
    return Space(tuple(found), borders.found(), plan)


def _heads(group: Group) -> bool:
    return role_of(group.kind) in ("layer", "product")


def _units(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups by unit, in order: what has no weights goes with the last unit that it reads, else with the first that reads it."""
    units: list[list[Group]] = []
    of: dict[Node, int] = {}
    waiting: dict[Node, list[Group]] = {}  # what a group that no unit has yet makes → it and what it reads of the like
    for group in groups:
        before = [g for source in group.inputs for g in waiting.pop(source, ())]
        reads = [of[source] for source in group.inputs if source in of]
        if not _heads(group) and not reads:
            waiting[group.output] = [*before, group]
            continue
        index = max(reads) if not _heads(group) else len(units)
        if index == len(units):
            units.append([])
        units[index] += [*before, group]
        of.update((g.output, index) for g in (*before, group))
    return units + [chain for chain in waiting.values() if chain]


class _Borders:
    """Who makes which tensor, and who reads it."""

    def __init__(self) -> None:
        self.made: dict[Node, str] = {}
        self.read: list[tuple[Node, str]] = []

    def add(self, unit: str, members: Sequence[Group]) -> None:
        self.made.update((g.output, unit) for g in members)
        self.read += [(source, unit) for g in members for source in g.inputs]

    def found(self) -> tuple[Border, ...]:
        pairs = {
            (source, reader): value(source).numel()
            for source, reader in self.read
            if self.made.get(source, reader) != reader
        }
        merged: dict[tuple[str, str], int] = {}
        for (source, reader), values in pairs.items():
            ends = (self.made[source], reader)
            merged[ends] = merged.get(ends, 0) + values
        return tuple(Border(source, reader, values) for (source, reader), values in merged.items())


def _can(head: Group, wanted: Precision, target: Target) -> bool:
    """Whether the target computes a unit's head in a precision."""
    if wanted.weight is None and wanted.activation is None:
        return wanted.name in target.floats
    if wanted.activation is None and (role_of(head.kind) != "layer" or leftover(head.node, wanted)):
        return False
    return target.takes(head.kind, wanted) is not None


def _line(group: Group, node: Node, wanted: Precision, target: Target) -> str:
    """What a plan says of an operator of a unit's layer where the unit has a precision."""
    if wanted.activation is not None:
        return wanted.name if target.takes(group.kind, wanted) is not None else FLOAT
    weighted = role_of(group.kind) == "layer" or (wanted.weight is None and _heads(group))
    return wanted.name if weighted and node is group.node else FLOAT


def _bytes(layer: Group, wanted: Precision) -> int:
    """Bytes of weights, bias and scales of a layer in a precision; a product has none."""
    if role_of(layer.kind) != "layer":
        return 0
    at, args = weights_of(layer.kind), layer.node.args
    weight, bias = args[at.weight], node_arg(layer.node, at.bias, None)
    assert isinstance(weight, Node)
    count, channels = value(weight).numel(), value(weight).shape[at.axis]
    biases = 4 * channels if isinstance(bias, Node) else 0
    if wanted.weight is None:
        return count * (2 if wanted.dtype == "float16" else 4) + biases
    groups = count // wanted.weight.tile.size if wanted.weight.tile.over == "group" else channels
    return -(-count * wanted.weight.bits // 8) + 4 * groups + biases
