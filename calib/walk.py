"""The walk: the network's layers in forward order, each with inputs that the quantized network before it gives.

Neighbouring steps that go from layer to layer make one walk together. Where they learn, every finished span is kept in the
workspace, and an interrupted walk goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor
from torch.fx import Node

from edgeq.calib.bench import Bench
from edgeq.calib.floats import Floats
from edgeq.calib.ratios import keep_ratios
from edgeq.calib.spans import Span, spans
from edgeq.calib.twins import Twins
from edgeq.calib.workspace import Part
from edgeq.graph.numbers import Resolved

Extent = Literal["layer", "block", "cross-block"]
Errors = tuple[float, float]  # before and after, relative to the output


@runtime_checkable
class Visitor(Protocol):
    """What a step hands to the walk in forward order, which several neighbouring steps make together.

    learns: what it finds is kept in the workspace. extent: what it looks at together. activations: it moves their scales.
    """

    @property
    def learns(self) -> bool:
        """See the class."""

    @property
    def extent(self) -> Extent:
        """See the class."""

    @property
    def activations(self) -> bool:
        """See the class."""

    def frames(self, floats: Floats) -> int | None:
        """How many frames it looks at; None: all."""

    def layer(self, walk: Walk, node: Node) -> Errors | None:
        """Find a layer's numbers; both sides have computed what it reads."""

    def close(self, walk: Walk, span: Span, part: Part) -> Errors | None:
        """Find a span's numbers; both sides have computed it."""


class Walk:
    """Lets `visitors` change the numbers of a bench in place.

    twins: both networks, computed as far as the walk has come. numbers: what the quantized one computes with.
    done: nodes it has passed.
    """

    def __init__(self, bench: Bench, visitors: Sequence[Visitor]) -> None:
        """The bench's cache holds every placeholder."""
        assert bench.cache is not None and bench.home is not None
        self.bench, self.visitors, self.home = bench, visitors, bench.home
        self.numbers, self.layers = bench.numbers, bench.layers
        self.twins = Twins(self.numbers, bench.cache)
        few = [v.frames(self.twins.floats) for v in visitors]
        if None not in few:
            self.twins = Twins(self.numbers, bench.cache, max(f for f in few if f is not None))
        self.learns = any(v.learns for v in visitors)
        extents = {v.extent for v in visitors}
        self.extent: Extent = "cross-block" if "cross-block" in extents else "block" if "block" in extents else "layer"
        self.done: set[Node] = set()
        self.sofar = bench.key.copy()  # of all that decides what the quantized network computes up to where the walk is
        self.sofar.update(repr(visitors).encode())
        self._absorb(self.sofar, self.twins.floats.placeholders)

    def run(self) -> None:
        """Every span in forward order; those the workspace knows are taken from it."""
        if self.learns:
            self.home.open(self.bench.key.hexdigest())
        for objective in self.bench.objectives.values():
            objective.ready(self.twins.cache.frames, self.bench.progress)
        found = spans(self.numbers, self.extent)
        begins = {s.nodes[0]: (i, s) for i, s in enumerate(found)}
        for node in self.twins.nodes:
            if node in self.done:
                continue
            index, span = begins.get(node, (0, None))
            if span is None:
                self._advance([node])
                continue
            stage = f"{'reconstruct' if self.learns else 'correct'} {span.name}"
            self.bench.progress(stage, index, len(found))
            key = self._key(span) if self.learns else ""
            errors = self.home.load(key, span, self.numbers) if self.learns else None
            if errors is None:
                part = self.home.part(key, self.numbers)
                errors = self._span(span, part)
                if self.learns:
                    self.home.save(key, span, self.numbers, errors)
            else:
                self._advance(span.nodes)
            said = f": error {errors[0]:.1e} → {errors[1]:.1e}" if self.learns else ""
            self.bench.progress(f"{stage}{said}", index + 1, len(found))

    def _advance(self, nodes: Sequence[Node]) -> None:
        self.twins.advance(nodes)
        self._release(nodes)

    def _release(self, nodes: Sequence[Node]) -> None:
        self.twins.release(nodes, keep=self.twins.floats.placeholders)
        self.done.update(nodes)
        self._absorb(self.sofar, nodes)

    def _key(self, span: Span) -> str:
        """A hash of all that decides a span's numbers: what was found before it, what it starts from, its float weights.

        Where scales of activations move, also whose they are and whose kernels have a say, behind the span as well.
        """
        found = self.sofar.copy()
        self._absorb(found, span.nodes)
        if any(v.activations for v in self.visitors):
            found.update(repr(self._bound(span)).encode())
        for node in span.layers:
            for tensor in (self.layers[node].weight, self.layers[node].bias):
                found.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
        return found.hexdigest()

    def _bound(self, span: Span) -> list[object]:
        """What binds the scales of a span's tensors: sets that others belong to, fixed numbers, ratios that kernels insist on."""
        annotation, resolved = self.numbers.annotation, self.numbers.resolved
        tensors = annotation.tensors
        roots = {tensors.find(n) for n in span.nodes if n in tensors.parent}
        told: list[object] = [(n.name, tensors.key(n)) for n in tensors.parent if tensors.find(n) in roots]
        told += sorted(root.name for root in roots & tensors.fixed.keys())
        for group in annotation.groups:
            ends = (group.output, *group.inputs)
            insists = group.kind == "mean" or group.support.ratio is not None
            if insists and any(tensors.find(n) in roots for n in ends):
                told += [group.node.name, group.kind, group.support.ratio]
                told += [(n.name, self.numbers.qparams(n)) for n in ends]
                if group.key in resolved.weights:
                    told.append(float(resolved.weights[group.key].scale.max()))
        return told

    def _absorb(self, into: hashlib._Hash, nodes: Iterable[Node]) -> None:
        """Add what `nodes` compute in and with to a hash."""
        numbers, annotation = self.numbers, self.numbers.annotation
        for node in nodes:
            told: list[object] = [node.name]
            if (group := numbers.groups.get(node)) is not None:
                told += [group.kind, group.precision, group.output.name]
                told += [(source.name, (group.key, source) in annotation.apart) for source in group.inputs]
            if node in annotation.tensors.parent:
                told.append(numbers.qparams(node))
            into.update(repr(told).encode())
            if node in numbers.weighted:
                key = numbers.weighted[node][0]
                coded, bias = numbers.resolved.weights[key], numbers.resolved.biases.get(key)
                into.update(repr(coded.grid).encode())
                for tensor in (coded.codes, coded.scale, bias):
                    into.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())

    def _span(self, span: Span, part: Part) -> Errors:
        """Find what `part` of a span is not known yet; returns the squared error of its last layer relative to the output, before
        and after.
        """
        computed: set[Node] = set()
        errors = (0.0, 0.0)
        for node in span.nodes:
            if node in computed:
                continue
            step = [node]
            if node in span.layers:
                errors = self._layer(node, part)
                group = self.numbers.groups.get(node)
                step = [node] if group is None or group.output is node else [node, group.output]
            self.twins.advance(step)
            computed.update(step)
        for visitor in self.visitors:
            found = visitor.close(self, span, part)
            if found is not None:
                errors = errors[0], errors[1] * found[1] / found[0] if found[0] > 0 else errors[1]
        self._release(span.nodes)
        return errors

    def _layer(self, node: Node, part: Part) -> Errors:
        known = part.known(node) if self.learns else None
        if known is not None:
            return known
        errors = (0.0, 0.0)
        for visitor in self.visitors:
            errors = visitor.layer(self, node) or errors
        if self.learns:
            part.add(node, errors)
        return errors

    def ratios_hold(self, found: Resolved) -> bool:
        """Whether every kernel takes the ratios of the scales in `found`."""
        kept = dict(found.activations)
        scales: dict[str, Tensor] = {key: coded.scale for key, coded in found.weights.items()}
        keep_ratios(self.bench.annotation, kept, scales)
        return kept == found.activations
