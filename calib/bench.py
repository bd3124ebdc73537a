"""What the steps of a recipe work on: the network, its data, what was seen of it, and the numbers so far."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.fx import Node

from edgeq.calib.cache import Cache
from edgeq.calib.choice import Candidate, Kept, least
from edgeq.calib.data.batches import Spooled, batches, spooled
from edgeq.calib.data.observation import Statistics, answers, observe, sets
from edgeq.calib.floats import Floats
from edgeq.calib.layers import WeightedLayer, weighted_layers
from edgeq.calib.objectives import Objective
from edgeq.calib.ranges import Method
from edgeq.calib.ranges.affine import affine
from edgeq.calib.ranges.observe import Observer
from edgeq.calib.ratios import keep_ratios
from edgeq.calib.twins import Numbers
from edgeq.calib.unlike import Again, Looked, apart
from edgeq.calib.ways import Ways
from edgeq.calib.workspace import Workspace
from edgeq.graph.annotate import Annotation
from edgeq.graph.capture import Captured
from edgeq.graph.coded import along, encode
from edgeq.graph.numbers import Resolved, snap_weight_scale
from edgeq.spec import Progress, QParams


@dataclass
class Bench:
    """Steps read and change it in turn.

    annotation: may be made anew where values of unlike size would share a scale; again: how, None: never; settled: layers that a
    person's plan names, which are left alone. data: calibration batches; None where no step reads any.
    observers: tensor set → what was seen. scales: layer key → float32 [C] (of groups in the weight's rank) as they were chosen,
    before kernels' demands widen them. resolved: the numbers so far. cache, home: where frames lie and where a long calibration
    keeps what it has finished; None where no step reads data again. key: of all that decides the numbers. objectives: those
    that steps ask for, by name.
    statistics: kept for other plans of the same network; None: nobody asks for them.
    """

    captured: Captured
    annotation: Annotation
    data: Iterable[Any] | None
    progress: Progress
    again: Again | None
    settled: frozenset[str]
    home: Workspace | None
    key: hashlib._Hash
    observers: dict[Node, Observer] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)
    resolved: Resolved = field(default_factory=Resolved)
    cache: Cache | None = None
    objectives: Mapping[str, Objective] = field(default_factory=dict)
    statistics: Statistics | None = None

    @property
    def layers(self) -> dict[Node, WeightedLayer]:
        """The layers with quantized weights, as they are now."""
        return weighted_layers(self.captured, self.annotation)

    @property
    def numbers(self) -> Numbers:
        """The numbers so far, to compute with."""
        return Numbers(self.captured, self.annotation, self.resolved)

    def frames(self) -> Iterable[tuple[Tensor, ...]]:
        """The calibration batches, on disk from now on."""
        assert self.cache is not None and self.data is not None
        if not isinstance(self.data, Spooled):
            self.data = spooled(self.cache, self.captured, batches(self.captured, self.data), self.progress)
        return self.data

    def look(self, methods: Mapping[str, Method]) -> None:
        """One float pass over the data; then scale and zero point of every tensor set by one of `methods`.

        It is the one whose intervals cost the network's outputs least, the first where none is clearly better. Outputs have the
        first: where several scores saturate, none is the largest.
        """
        if self.data is None:
            return
        answered, *others = methods.values()
        kept = Kept() if self.statistics is None else self.statistics.kept
        seen, looked = self._seen(self.data, any(m.needs_histogram for m in methods.values()), kept)
        if not others or not seen:
            self._range(answered, seen, looked, answered)
            return
        given, found = self.annotation, dict[str, Candidate]()
        batches = kept.some([seen[n] for n in given.tensors.parent if n in seen and seen[n].reaches])
        for name, method in methods.items():
            self.annotation = given
            self._range(method, seen, looked, answered)
            found[name] = Candidate(self.annotation, self.resolved.activations)
        chosen = found[least(self.captured, found, batches, self.progress)]
        self.annotation, self.resolved.activations = chosen.annotation, dict(chosen.activations)
        self.observers = sets(self.annotation, seen)

    def _range(self, method: Method, seen: dict[Node, Observer], looked: Looked, answered: Method) -> None:
        """Scale and zero point of every tensor set by `method`, of outputs by `answered`, and the annotation that they serve."""
        if self.again is not None:

            def ranges(changed: Annotation) -> dict[str, QParams]:
                return grids(changed, method, sets(changed, seen), answered)

            self.annotation = apart(self.annotation, self.again, ranges, seen, method, looked, self.settled)
        self.observers = sets(self.annotation, seen)
        self.resolved.activations = grids(self.annotation, method, self.observers, answered)

    def _seen(self, data: Iterable[Any], histogram: bool, some: Kept) -> tuple[dict[Node, Observer], Looked]:
        """What was seen of every quantized tensor, and the first batches: by a pass of its own, or kept from another plan's.

        some: gets the batches of the pass.
        """
        tensors, kept = self.annotation.tensors, self.statistics
        wanted = [node for members in tensors.sets().values() for node in members]
        if kept is not None and kept.looked is not None and kept.serves(wanted, histogram):
            return kept.seen, kept.looked
        ends = set() if self.again is None else {*Ways(self.captured, self.annotation).ends(), *answers(self.captured)}
        looked = Looked(self.captured, ends)
        made = {g.output for g in self.annotation.groups}
        entering = [node for node in wanted if node not in made]
        if kept is not None:  # another plan may let others enter
            wanted = entering = list(tensors.parent)

        def spool(index: int, batch: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
            if self.cache is not None:
                self._spool(index, batch, outputs)
            some.add(index, batch)

        seen = observe(self.captured, wanted, entering, histogram, data, self.progress, spool, looked)
        if kept is not None:
            kept.seen, kept.looked = {**kept.seen, **seen}, looked
        return seen, looked

    def _spool(self, index: int, batch: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
        assert self.cache is not None
        for node, tensor in zip(Floats(self.captured).placeholders, batch, strict=True):
            if not isinstance(self.data, Spooled):
                self.cache.write(f"float {node.name}", index, tensor, 1)
            self.key.update(tensor.contiguous().numpy().tobytes())
        for objective in self.objectives.values():
            for tensor in objective.see(self.cache, index, outputs):
                self.key.update(tensor.numpy().tobytes())

    def once(self, step: object, work: Callable[[], None]) -> None:
        """Do a step's `work` on the numbers, or take what it came to in a run that was interrupted since.

        For what looks at data for long, and changes nothing but numbers and scales.
        """
        if self.home is None or not self.home.lasts:
            return work()
        self.home.open(self.key.hexdigest())
        annotation = self.annotation
        told = (
            step,
            annotation.groups,
            annotation.weight_only,
            sorted(map(str, annotation.apart)),
            self.resolved.activations,
        )
        key = hashlib.sha256(self.key.digest() + repr(told).encode()).hexdigest()
        found = self.home.numbers(key)
        if found is None:
            work()
            self.home.keep(key, replace(self.resolved, constants=self.scales))
        else:
            self.resolved, self.scales = replace(found, constants={}), found.constants
        return None

    def settle(self) -> None:
        """Widen scales where kernels demand it; weights get the nearest codes on them until a step rounds better."""
        layers, scales = self.layers.values(), dict(self.scales)
        keep_ratios(self.annotation, self.resolved.activations, scales)
        for x in layers:
            if x.source is not None:
                source = self.resolved.activations[self.annotation.tensors.key(x.source)]
                scales[x.key] = snap_weight_scale(scales[x.key], x.bias, source)
            scale = along(scales[x.key], x.axis, x.weight.dim()) if scales[x.key].dim() == 1 else scales[x.key]
            self.resolved.weights[x.key] = encode(x.weight, x.grid, scale)


def grids(
    annotation: Annotation, method: Method, observers: Mapping[Node, Observer], answered: Method
) -> dict[str, QParams]:
    """Scale and zero point of each tensor set, by its key; answered: the method for outputs of the network."""
    tensors, found = annotation.tensors, dict[str, QParams]()
    outputs = {tensors.find(n) for n in tensors.parent if any(user.op == "output" for user in n.users)}
    for root, seen in observers.items():
        spec = tensors.specs[root]
        low, high = (answered if root in outputs else method)(seen, spec)
        found[root.name] = tensors.fixed.get(root) or affine(low, high, spec, seen.noise)
    return found
