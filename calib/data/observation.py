"""One float pass over the calibration data: what every tensor that will be quantized held."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.choice import Kept
from edgeq.calib.data.batches import batches, stacks
from edgeq.calib.floats import Floats
from edgeq.calib.ranges.observe import Observer
from edgeq.calib.unlike import Looked
from edgeq.graph.annotate import Annotation
from edgeq.graph.capture import Captured, flatten
from edgeq.graph.coded import Coded
from edgeq.spec import Progress

# of the values that an operator reads: a result below it says nothing
ROUNDING: Final = 16 * torch.finfo(torch.float32).eps
Spool = Callable[[int, tuple[Tensor, ...], tuple[Tensor, ...]], None]


@dataclass
class Statistics:
    """What float passes saw of a captured network, kept so that another plan for it needs none of its own.

    seen: tensor → its observer, of every tensor that a plan so far could quantize. looked: first batches. rounded: codes that
    solvers found without data, by a hash of what they began with. kept: batches to choose
    between range methods by.
    """

    seen: dict[Node, Observer] = field(default_factory=dict)
    looked: Looked | None = None
    rounded: dict[str, Coded] = field(default_factory=dict)
    kept: Kept = field(default_factory=Kept)

    def serves(self, wanted: Iterable[Node], histogram: bool) -> bool:
        """Whether all of `wanted` was seen, with histograms where they are needed."""
        return self.looked is not None and all(
            node in self.seen and (self.seen[node].counts is not None or not histogram) for node in wanted
        )


def observe(
    captured: Captured,
    wanted: Iterable[Node],
    entering: Iterable[Node],
    histogram: bool,
    data: Iterable[Any],
    progress: Progress,
    spool: Spool,
    looked: Looked,
) -> dict[Node, Observer]:
    """One float pass over `data`; returns what was seen of each tensor in `wanted`.

    entering: those that may be floats on their way into integers, whose noise counts. histogram: observers keep one. `spool`
    gets every batch with its outputs, `looked` the first batches.
    """
    watching = {
        node: Observer(captured.keys.get(node.name, f"input {node.name}"), histogram=histogram) for node in wanted
    }
    read: dict[Node, list[Node]] = {}
    for node in entering:
        for source in node.all_input_nodes:
            held = source.meta.get("val")
            if source.op != "get_attr" and isinstance(held, Tensor) and held.is_floating_point() and held.numel():
                read.setdefault(source, []).append(node)
    floats, given = Floats(captured), answers(captured)
    total = len(data) if isinstance(data, Sized) else None
    done = 0
    for group in stacks(floats, batches(captured, data)):
        found: dict[Node, Tensor] = {}
        wanted = {*given, *(looked.keep if looked.wants() else ())}
        with torch.no_grad():
            inputs = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*group, strict=True)]
            for node, seen in floats.walk(inputs):
                if node in watching:
                    watching[node].update(seen, batch=done, stacked=len(group))
                for reader in read.get(node, ()):
                    watching[reader].noise = max(watching[reader].noise, ROUNDING * float(seen.abs().max()))
                if node in wanted:
                    found[node] = seen
        each = {n: seen.chunk(len(group)) if len(group) > 1 else (seen,) for n, seen in found.items()}
        for index, batch in enumerate(group):
            if looked.wants():
                looked.add(batch, {n: each[n][index] for n in looked.keep})
            spool(done + index, batch, tuple(each[n][index] for n in given))
        done += len(group)
        progress("calibrate", done, total)
    return watching


def answers(captured: Captured) -> list[Node]:
    """The nodes that are the network's outputs, in their order."""
    return [n for n in flatten(captured.module.graph.output_node().args[0]) if isinstance(n, Node)]


def sets(annotation: Annotation, observers: Mapping[Node, Observer]) -> dict[Node, Observer]:
    """Tensor set → what was seen of its members; what integers make has no noise of floats."""
    made, found = {g.output for g in annotation.groups}, {}
    for root, members in annotation.tensors.sets().items():
        found[root] = Observer.merged([observers[n] for n in members])
        found[root].noise = 0.0 if made & set(members) else found[root].noise
    return found
