"""Which of several sets of activation scales costs the network's own outputs least.

No range method is best everywhere: extremes waste the grid of a tensor with long tails, and whatever clips these loses the rare
large values that a detector lives on. Which of the two matters shows at the outputs alone, as a squared error in a tensor also
counts what a later clip, pool or sum takes away. Nagel et al. 2021 (A White Paper on Neural Network Quantization, arXiv
2106.08295, section 3.1) compare methods so, by hand. Ours: the float network with each candidate's activations answers a few
calibration batches, one that reaches furthest and others that stand for the rest, as a clip costs most where few look. Distance
is noise over signal of each output, multiplied over outputs, so that one in metres does not drown another's probabilities. One
method serves all tensors but the outputs: a mixture would be fitted to the few batches that are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.floats import Floats
from edgeq.calib.ranges.observe import Observer
from edgeq.calib.twins import Numbers
from edgeq.graph.annotate import Annotation
from edgeq.graph.capture import Captured
from edgeq.graph.numbers import Resolved
from edgeq.spec import Progress, QParams

SHARE: Final = 8  # of so many calibration batches one is looked at, so that all candidates cost less than two passes
FEWEST: Final = 4  # and no fewer batches than these
BEHIND_DB: Final = 6.0  # a candidate that is so far behind after two batches is looked at no longer
HELD: Final = 1 << 24  # values of calibration batches that are kept to look at some: 64 MiB
MARGIN_DB: Final = 0.5  # a later candidate has to be better by so much, as a few batches tell no smaller difference
LEAST: Final = 1e-20  # noise over signal that is none

Batch = Sequence[Tensor]
Weighted = Sequence[tuple[float, Batch]]


@dataclass(slots=True)
class Candidate:
    """Activations' scales and zero points by the key of their tensor set, and the annotation under which these serve."""

    annotation: Annotation
    activations: Mapping[str, QParams]


@dataclass(slots=True)
class Kept:
    """Calibration batches by their index, each 2^n-th where all of them would be too many."""

    batches: dict[int, Batch] = field(default_factory=dict)
    every: int = 1
    held: int = 0

    def add(self, index: int, batch: Batch) -> None:
        """Keep one more, or leave it."""
        if index % self.every or index in self.batches:
            return
        self.batches[index] = batch
        self.held += sum(x.numel() for x in batch)
        while self.held > HELD and len(self.batches) > 2:
            self.every *= 2
            self.batches = {i: b for i, b in self.batches.items() if i % self.every == 0}
            self.held = sum(x.numel() for b in self.batches.values() for x in b)

    def some(self, seen: Collection[Observer]) -> Weighted:
        """One in SHARE of the batches, FEWEST at least, each with how many it stands for.

        The one whose tensors reach furthest comes first and stands for itself, the others for strata of the rest by reach, the
        middle one before those around it.
        """
        furthest = [max(o.reaches) for o in seen]
        reach = {
            i: sum(o.reaches[i] / most for o, most in zip(seen, furthest, strict=True) if most > 0)
            for i in self.batches
        }
        first, *rest = sorted(self.batches, key=lambda i: (-reach[i], i))
        strata = min(len(rest), max(FEWEST, len(self.batches) // SHARE) - 1)
        found = [(1.0, self.batches[first])]
        for stratum in sorted(range(strata), key=lambda s: abs(2 * s + 1 - strata)):
            inside = rest[stratum * len(rest) // strata : (stratum + 1) * len(rest) // strata]
            found.append((float(len(inside)), self.batches[inside[len(inside) // 2]]))
        return found


def least(captured: Captured, candidates: Mapping[str, Candidate], batches: Weighted, progress: Progress) -> str:
    """Name of the candidate whose outputs on `batches` are nearest to float's; the first where none is clearly better."""
    far: dict[str, float] = dict.fromkeys(candidates, math.inf)
    left = {name: Errors() for name in candidates}
    for done, (weight, batch) in enumerate(batches, start=1):
        real = _answers(captured, batch)
        for name, errors in left.items():
            chosen = candidates[name]
            numbers = Numbers(captured, chosen.annotation, Resolved(activations=dict(chosen.activations)))
            errors.add(weight, real, _answers(captured, batch, numbers))
            far[name] = errors.decibel()
        reached = min(far.values())
        if done > 1:
            left = {name: errors for name, errors in left.items() if far[name] <= reached + BEHIND_DB}
        progress("choose ranges", done, len(batches))
    reached = min(far[name] for name in left)
    return next(name for name in left if far[name] <= reached + MARGIN_DB)


@dataclass(slots=True)
class Errors:
    """Signal and noise of each output that is numbers with fractions, squared and summed, each batch by its weight."""

    sums: dict[Node, tuple[float, float]] = field(default_factory=dict)

    def add(self, weight: float, wanted: Mapping[Node, Any], got: Mapping[Node, Any]) -> None:
        """Add a batch. wanted, got: the outputs in float, and quantized."""
        for node, real in wanted.items():
            if isinstance(real, Tensor) and real.is_floating_point():
                signal, noise = self.sums.get(node, (0.0, 0.0))
                signal += weight * float(real.double().square().sum())
                noise += weight * float((got[node].double() - real.double()).square().sum())
                self.sums[node] = signal, noise

    def decibel(self) -> float:
        """Noise over signal, mean over outputs; infinite where one is no number, 0 where there are no outputs to compare."""
        shares = [max(noise / signal, LEAST) for signal, noise in self.sums.values() if 0.0 < signal < math.inf]
        found = 10 * sum(math.log10(share) for share in shares) / max(1, len(shares))
        return found if math.isfinite(found) else math.inf


def _answers(captured: Captured, batch: Batch, numbers: Numbers | None = None) -> dict[Node, Any]:
    """The network's outputs in float, or with activations on the grids of `numbers`."""
    floats = Floats(captured)
    outputs = set(captured.module.graph.output_node().all_input_nodes)
    with torch.no_grad():
        walk = floats.walk(batch) if numbers is None else floats.walk(batch, numbers.as_read, numbers.on_grid)
        return {node: value for node, value in walk if node in outputs}
