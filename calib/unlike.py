"""Values of unlike size that would share one scale: found before they do, and kept apart.

One scale for boxes in pixels and for scores leaves the scores no steps. Here every set of tensors that shares a scale, every
float tensor on its way into integers and every output of the network is looked at: where the small values matter to whoever
reads them, what joins them, or reads them, stays in float; where they do not, but are read elsewhere too, they keep a scale of
their own and are requantized on their way into the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.floats import Floats
from edgeq.calib.ranges import Method
from edgeq.calib.ranges.affine import affine
from edgeq.calib.ranges.observe import Observer
from edgeq.calib.ways import Ways
from edgeq.graph.annotate import Annotation, Apart, Group
from edgeq.graph.capture import Captured
from edgeq.graph.coded import on_grid
from edgeq.graph.curves import Curve, entries
from edgeq.graph.far import FAR_DB, LOST_DB, lost
from edgeq.graph.kinds import role_of, weights_of
from edgeq.graph.legal import CONVERTS
from edgeq.graph.ops import constant
from edgeq.spec import QParams

FEWEST: Final = 16 / 255  # share of a scale's range below which a tensor has too few steps of it
CLIPPED: Final = 0.5  # share of a tensor's own interval that a shared one leaves it, below which it saturates
QUIET: Final = 1 / 3  # squared steps of a reader's own grid, four times what its rounding gives: an error below is none
BITS: Final = 8  # with fewer bits, few steps are what was asked for
WHOLE, MOST, SMALL = 2, 32, 1 << 14  # batches looked at: so many, and up to MOST while they hold less than SMALL values

Again = Callable[[Mapping[str, str], Apart], Annotation]  # the annotation with layers kept in float, and inputs apart


@dataclass(slots=True)
class Looked:
    """Float values of single nodes on the first calibration batches; one pass more for those not kept yet.

    keep: nodes whose values whoever passes over these batches is to `add`.
    """

    captured: Captured
    keep: set[Node] = field(default_factory=set)
    batches: list[tuple[Tensor, ...]] = field(default_factory=list)
    values: dict[Node, list[Tensor]] = field(default_factory=dict)
    held: int = 0  # values in the batches

    def wants(self) -> bool:
        """Whether another batch is to be looked at."""
        return len(self.batches) < WHOLE or (len(self.batches) < MOST and self.held < SMALL)

    def add(self, batch: tuple[Tensor, ...], values: Mapping[Node, Tensor]) -> None:
        """Look at one more batch. values: of the nodes to keep."""
        self.batches.append(batch)
        self.held += sum(x.numel() for x in batch)
        for node, value in values.items():
            self.values.setdefault(node, []).append(value)

    def prepare(self, nodes: Iterable[Node]) -> None:
        """Compute what of `nodes` is not kept yet."""
        missing = {n for n in nodes if n not in self.values}
        if not missing:
            return
        floats = Floats(self.captured)
        with torch.no_grad():
            for batch in self.batches:
                for node, value in floats.walk(batch):
                    if node in missing:
                        self.values.setdefault(node, []).append(value)


class Unlike:
    """What one annotation with its numbers does to values of unlike size."""

    def __init__(
        self,
        annotation: Annotation,
        activations: Mapping[str, QParams],
        observers: Mapping[Node, Observer],
        interval: Method,
        looked: Looked,
        settled: frozenset[str],
    ) -> None:
        """observers: of every quantized tensor. settled: layers whose precision a person chose."""
        self.annotation, self.activations, self.observers = annotation, activations, observers
        self.interval, self.looked, self.settled = interval, looked, settled
        self.captured = looked.captured
        self.tensors, self.ways = annotation.tensors, Ways(looked.captured, annotation)
        self.floats: dict[str, str] = {}
        self.apart: set[tuple[str, Node]] = set()

    def find(self) -> None:
        """Fill `floats` and `apart` with what is to change first."""
        for look in (self._poles, self._sets, self._ends, self._inside):
            look()
            if self.floats or self.apart:
                return

    # ---------------------------------------------------------------- what is looked at

    def _poles(self) -> None:
        """Curves that are no number somewhere on their input's grid, whoever asked for them."""
        for group in self.annotation.groups:
            if group.kind == "curve":
                curve, given = Curve(group.inputs[0], group.nodes), self._grid(group.inputs[0])
                if entries(self.captured.module, curve, given, self._grid(group.output)) is None:
                    ends = [given.step * (end - given.zero) for end in (given.qmin, given.qmax)]
                    why = f"it has a pole, or is no real number, somewhere from {ends[0]:.3g} to {ends[1]:.3g}, its input's range"
                    self.floats[group.key] = why

    def _sets(self) -> None:
        """Whatever joins tensors on one scale."""
        for group in self.annotation.groups:
            if group.kind == "cat" and len(set(group.inputs)) > 1 and self._looked_at(group.output):
                self._joined(group)

    def _ends(self) -> None:
        """Where floats become integers, and integers leave for the network's outputs."""
        self.looked.prepare(self.ways.ends())
        for node in self.ways.entries():
            if self._looked_at(node):
                self._entering(node)
        for node in self.ways.leaving():
            if self._looked_at(node):
                self._answered(node)

    def _inside(self) -> None:
        """Every operator, where the network's outputs are lost: those whose inputs' scales lose what they compute."""
        if not self._outputs_lost():
            return
        groups = [g for g in self.annotation.groups if not g.support.shared_scale and self._looked_at(g.output)]
        self.looked.prepare(n for g in groups for n in (*g.inputs, g.output))
        for group in groups:
            if self._harmed(group, set(), channels=False):
                self._keep(
                    group, "its weights are of unlike size from input to input, and the smaller ones would be lost"
                )
                continue
            for node in dict.fromkeys(group.inputs):
                if self._nothing(node) or not self._harmed(group, {node}, channels=False):
                    continue
                why = f"the scale of {self._name(node)} loses what {group.key!r} computes of it"
                self._keep(group, why)
                for source in self.ways.before([node]):
                    if source in self.ways.makers:
                        self._keep(self.ways.makers[source], why)

    def _joined(self, group: Group) -> None:
        """A concatenation: members with few steps, or that saturate."""
        widest = max(_span(self.observers[n]) for n in group.inputs)
        squeezed = {n: self._squeezed(n, group.output, widest) for n in dict.fromkeys(group.inputs)}
        members = {n: words for n, words in squeezed.items() if words}
        if not members:
            return
        why = self._words(members, group)
        reach = self.ways.behind({group.output})
        harmed = [g for g in self.ways.computing(reach) if self._harmed(g, reach)]
        beyond = {n for n in members if not self._convertible(n, group.output)}
        alone = {n for n in members if self.ways.read_elsewhere(n, group)}
        if any((group.key, n) in self.annotation.apart for n in beyond):  # whatever a person chose
            self.floats[group.key] = f"it joins {why}, further apart than kernels requantize"
        if harmed or self.ways.leaves(reach) or (group.support.shared_scale and alone & beyond):
            self._keep(group, f"it joins {why}")
            for reader in harmed:
                self._keep(reader, f"it reads {why}")
        elif group.support.shared_scale:
            self.apart.update((group.key, n) for n in alone if (group.key, n) not in self.annotation.apart)

    def _entering(self, node: Node) -> None:
        """A float tensor that is quantized: what its integer readers make of it; nothing where it is the rounding of others."""
        if self._nothing(node):
            return
        reach = self.ways.behind({node})
        harmed = [g for g in self.ways.computing(reach) if self._harmed(g, reach)]
        moved = [n for n in reach if n is not node and self.ways.leaves({n})]
        if not harmed and not (moved and self._is_lost(node, self._grid(node))):
            return
        ways = self.ways.before([*moved, *(n for g in harmed for n in g.inputs if n in reach)])
        why = f"it reads {self._name(node)}, whose scale loses its smaller values{self._columns(node)}"
        for group in [*(self.ways.makers[n] for n in ways if n in reach and n in self.ways.makers), *harmed]:
            self._keep(group, why)

    def _answered(self, node: Node) -> None:
        """Integers that leave for good, on their own grid: whoever made what is lost there stays in float."""
        if not self._is_lost(node, self._grid(node)):
            return
        ways = self.ways.before([node])
        sources = [n for n in ways if not self.ways.shares(n) and n in self.ways.makers]
        self.looked.prepare(sources)
        own = [n for n in sources if self._is_lost(n, self._own(n))]
        joints = [n for n in ways if self.ways.shares(n) and len(self.ways.makers[n].inputs) > 1]
        for culprit in own or joints or sources:
            name = self._name(culprit)
            self._keep(
                self.ways.makers[culprit], f"values of {name} that the network gives out would be lost on its scale"
            )

    # ---------------------------------------------------------------- how it is measured

    def _squeezed(self, node: Node, shared: Node, widest: float) -> str:
        """What is wrong with the steps of `node` on the grid of `shared`; nothing where they do."""
        span, q = _span(self.observers[node]), self._grid(shared)
        scale = q.step
        if 0 < span < FEWEST * min(widest, scale * (q.qmax - q.qmin)):
            return f"{span / scale:.1f} of {q.qmax - q.qmin} steps"
        own = self._own(node)
        low, high = (scale * (end - q.zero) for end in (q.qmin, q.qmax))
        wanted = [own.step * (end - own.zero) for end in (own.qmin, own.qmax)]
        left = min(high, wanted[1]) - max(low, wanted[0])
        return (
            f"{100 * left / (wanted[1] - wanted[0]):.0f} % of its range"
            if left < CLIPPED * (wanted[1] - wanted[0])
            else ""
        )

    def _nothing(self, node: Node) -> bool:
        """Whether all that was seen of a float tensor is the rounding of what it was computed of."""
        seen = self.observers.get(node)
        return seen is not None and node not in self.ways.makers and _span(seen) <= seen.noise

    def _grid(self, node: Node) -> QParams:
        """The numbers of `node` in its set."""
        return self.activations[self.tensors.key(node)]

    def _own(self, node: Node) -> QParams:
        """The grid that `node` would have alone."""
        spec = self.tensors.specs[self.tensors.find(node)]
        return affine(*self.interval(self.observers[node], spec), spec)

    def _convertible(self, node: Node, shared: Node) -> bool:
        """Whether every runtime requantizes from the grid of `node` alone to that of `shared`."""
        fixed = self.tensors.fixed.get(self.tensors.find(node))
        own = fixed or self._own(node)
        ratio = own.step / self._grid(shared).step
        return CONVERTS[0] < ratio < CONVERTS[1]

    def _harmed(self, group: Group, reach: set[Node], *, channels: bool = True) -> bool:
        """Whether what `group` computes with quantized weights is lost where it reads the quantized values of `reach` and all
        else in float: as a whole, or in single `channels`."""
        values = self.looked.values
        self.looked.prepare([*group.inputs, group.output])
        if any(not isinstance(v, Tensor) or not bool(v.isfinite().all()) for v in values[group.output]):
            return False
        floats, got = Floats(self.captured, self._weights([group])), []
        for index in range(len(self.looked.batches)):

            def read(node: Node, index: int = index) -> Tensor:
                value = values[node][index]
                return on_grid(value, self._grid(node)) if node in reach else value

            made: dict[Node, Tensor] = {}

            def inside(node: Node, made: dict[Node, Tensor] = made, read: Callable[[Node], Tensor] = read) -> Tensor:
                return made[node] if node in made else read(node)

            with torch.no_grad():
                for node in group.nodes:
                    made[node] = floats.node(node, inside)
            got.append(made[group.output])
        a, b = torch.stack(values[group.output]), torch.stack(got)
        ignored = QUIET * self._grid(group.output).step ** 2
        if _far(a, b, ignored):
            return True
        axis = a.dim() - 2 if group.kind == "linear" else 1 if a.dim() > 2 else 0
        seen = channels and role_of(group.kind) == "layer"
        return seen and lost(a, b, LOST_DB, axes=(axis,), ignored=ignored) is not None

    def _weights(self, groups: Iterable[Group]) -> dict[Node, Tensor]:
        """The weights of `groups` on grids of their own channels' ranges."""
        found: dict[Node, Tensor] = {}
        for group in groups:
            spec = group.precision.weight
            if role_of(group.kind) == "layer" and spec is not None and spec.bits >= BITS:
                at = weights_of(group.kind)
                node = group.node.args[at.weight]
                assert isinstance(node, Node)
                weight = constant(self.captured.module, node)
                along = [a for a in range(weight.dim()) if a != at.axis]
                scale = (weight.abs().amax(along, keepdim=True) / spec.qmax).clamp(min=torch.finfo(torch.float32).tiny)
                found[node] = torch.round(weight / scale) * scale
        return found

    def _is_lost(self, node: Node, grid: QParams) -> bool:
        """Whether the values of `node` are, as a whole or in slices, lost on `grid`."""
        values = self.looked.values[node]
        if any(not bool(v.isfinite().all()) for v in values):
            return False
        a, b = torch.stack(values), torch.stack([on_grid(v, grid) for v in values])
        few = FEWEST * grid.step * (grid.qmax - grid.qmin)
        return _far(a, b) or lost(a, b, FAR_DB, reach=few) is not None

    def _outputs_lost(self) -> bool:
        """Whether outputs of the network are lost where every activation and every weight is put on its grid."""
        floats = Floats(self.captured, self._weights(self.annotation.groups))
        answers = [n for n in self.ways.output.all_input_nodes if n.op == "call_function"]
        self.looked.prepare(answers)
        found: dict[Node, list[Tensor]] = {n: [] for n in answers}
        judged = self.looked.batches[: 1 if self.looked.held >= SMALL else None]
        with torch.no_grad():
            for batch in judged:
                for node, value in floats.walk(batch, self._read):
                    if node in found:
                        found[node].append(self._read(self.ways.output, node, value))
        for node, got in found.items():
            want = self.looked.values[node][: len(judged)]
            sound = all(isinstance(v, Tensor) and v.is_floating_point() and bool(v.isfinite().all()) for v in want)
            if sound and (_far(a := torch.stack(want), b := torch.stack(got)) or lost(a, b, LOST_DB) is not None):
                return True
        return False

    def _read(self, reader: Node, node: Node, value: Any) -> Any:
        """What `reader` reads of `node`: what integers compute is on its grid for all, what they read for them alone."""
        on = node in self.ways.makers or (node in self.tensors.parent and reader in self.ways.integer)
        return on_grid(value, self._grid(node)) if on else value

    def _looked_at(self, node: Node) -> bool:
        return self.tensors.specs[self.tensors.find(node)].bits >= BITS

    # ---------------------------------------------------------------- words

    def _keep(self, group: Group, why: str) -> None:
        if group.key not in self.settled:
            self.floats.setdefault(group.key, why)

    def _name(self, node: Node) -> str:
        while self.ways.shares(node):  # whoever computed the most of it
            node = max(self.ways.makers[node].inputs, key=lambda n: _span(self.observers[n]))
        key = self.ways.makers[node].key if node in self.ways.makers else self.captured.keys.get(node.name)
        return f"the input {node.name!r}" if key is None else f"{key!r}"

    def _words(self, members: Mapping[Node, str], joining: Group) -> str:
        """What members of a concatenation keep, and whose range that is due to."""
        root = self.tensors.find(joining.output)
        same = [n for n in self.tensors.parent if self.tensors.find(n) is root and n is not joining.output]
        widest = max((*joining.inputs, *same), key=self._reach)
        kept = " and ".join(dict.fromkeys(f"{self._name(n)}, which keeps {words}" for n, words in members.items()))
        return f"{kept} on one scale with {self._name(widest)}, whose values reach {self._reach(widest):.3g}"

    def _reach(self, node: Node) -> float:
        return _span(self.observers[node])

    def _columns(self, node: Node) -> str:
        """Where along an axis the slices lie that have next to no steps."""
        whole, step = torch.stack(self.looked.values[node]), self._grid(node).step
        for axis in range(whole.dim() - 1, 0, -1):
            reach = whole.abs().amax([a for a in range(whole.dim()) if a != axis])
            few = ((reach > 0) & (reach < FEWEST * step * 255)).nonzero().flatten().tolist()
            if whole.shape[axis] > 1 and few:
                numbers = ", ".join(map(str, few[:6])) + (", …" if len(few) > 6 else "")
                return f" (along axis {axis - 1}, index {numbers}, they have fewer than 16 of 255 steps)"
        return ""


def _span(seen: Observer) -> float:
    """How far the values reach, 0 included, as a grid's must."""
    return max(seen.high, 0.0) - min(seen.low, 0.0)


def _far(want: Tensor, got: Tensor, ignored: float = 0.0) -> bool:
    """Whether values are lost as a whole; a mean squared error of `ignored` is no loss."""
    signal, noise = float(want.double().square().mean()), float((got - want).double().square().mean())
    return 0 < signal * 10 ** (-FAR_DB / 10) < noise > ignored


def apart(
    annotation: Annotation,
    again: Again,
    ranges: Callable[[Annotation], Mapping[str, QParams]],
    observers: dict[Node, Observer],
    interval: Method,
    looked: Looked,
    settled: frozenset[str],
) -> Annotation:
    """`annotation`, changed until no values of unlike size share a scale where that is heard.

    again: makes it anew. ranges: the activations' numbers for one. observers: of the tensors whose values were observed; those
    that hold the same values moved or joined are added. settled: layers that a person chose a precision for.
    """
    kept: dict[str, str] = {}
    own: set[tuple[str, Node]] = set()
    for group in annotation.groups:
        if group.output not in observers:
            observers[group.output] = Observer.merged([observers[n] for n in group.inputs])
    while True:
        found = Unlike(annotation, ranges(annotation), observers, interval, looked, settled)
        found.find()
        if not (found.floats.keys() - kept.keys() or found.apart - own):
            return annotation
        kept = {**found.floats, **kept}
        own |= found.apart
        annotation = again(kept, frozenset(own))


def sentences(annotation: Annotation) -> Iterator[str]:
    """What was kept in float and why, one sentence a layer."""
    for key, why in annotation.kept.items():
        yield f"layer {key!r} stays in float: {why}"
