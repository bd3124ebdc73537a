"""Step `search`: for every activation the share of its interval with the least error in the outputs of the layers that read it.

Zhou et al. 2024, LiDAR-PTQ (arXiv 2401.15865), section 3.2: max-min keeps the rare large values that carry geometry, where
entropy and percentiles cut them off; a light grid search around its step size then finds the step with the least
reconstruction error: argmin over s of Σ m · (f(x̂) − f(x))², with x̂ the tensor x on the grid of step s, f the reading layer and m
a cell's mass. Ours: the bounds and number of candidates; that the error is that of the reading layer's output behind
its activation, since an error that the next layer's kernel averages away costs nothing; and that empty cells weigh at most as
much together as the occupied ones (edgeq.calib.cells.cell_mass), since they are most of the map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from edgeq.calib.bench import Bench
from edgeq.calib.cache import Cache
from edgeq.calib.cells import cell_mass, relative_error
from edgeq.calib.needs import DATA
from edgeq.calib.ranges.affine import affine
from edgeq.calib.ranges.observe import Observer
from edgeq.calib.twins import Numbers
from edgeq.graph.annotate import Group
from edgeq.graph.coded import on_grid
from edgeq.graph.kinds import role_of
from edgeq.spec import EdgeqError, Progress, QParams

MOST: Final = 1.1  # largest share of the max-min range that is tried
STEP: Final = 0.1  # from one candidate to the next


@dataclass(frozen=True, slots=True)
class Search:
    """least: the smallest share of the interval that is tried, up to 1, where nothing is ever clipped; 0: what suits the bits."""

    needs: ClassVar[frozenset[str]] = frozenset({DATA})
    least: float = 0.0

    def __post_init__(self) -> None:
        """Raise EdgeqError where it is no share."""
        if not 0.0 <= self.least <= 1.0:
            raise EdgeqError(
                f"search: least is {self.least}: give a share above 0 and up to 1, or 0 for what suits the bits"
            )

    def run(self, bench: Bench) -> None:
        """Better scales of activations, and the weights' as kernels then demand them."""
        assert bench.cache is not None
        cache = bench.cache

        def work() -> None:
            search(bench.numbers, cache, bench.observers, self.least or None, bench.progress)
            bench.settle()

        bench.once(self, work)


def least_share(bits: int) -> float:
    """Smallest share of the max-min range worth trying: 0.6 at eight bits, where clipping buys little, 0.2 at four."""
    return min(1.0, max(0.2, 0.1 * bits - 0.2))


FRAMES: Final = 8  # those where most tensors reach their extremes, so that the cost of clipping these is seen


def search(
    numbers: Numbers, cache: Cache, observers: Mapping[Node, Observer], least: float | None, progress: Progress
) -> None:
    """Replace the activation scales of `numbers`, max-min so far, by the best candidate between `least` and MOST of them.

    least: for every tensor; None leaves it to `least_share` of its bits.

    cache: holds the float value of every placeholder. observers: what the float pass saw. Tensors with fixed numbers keep
    them; the max-min range itself is among the candidates and wins a tie.
    """
    runner = _Runner(numbers, least)
    placeholders = [n for n in numbers.captured.module.graph.nodes if n.op == "placeholder"]
    votes = Counter(batch for seen in observers.values() for batch in (seen.low_batch, seen.high_batch))
    chosen = sorted(range(cache.frames), key=lambda frame: (-votes[frame], frame))[:FRAMES]
    for done, frame in enumerate(chosen, start=1):
        with torch.no_grad():
            runner.run(*(cache.read(f"float {n.name}", frame, frame + 1) for n in placeholders))
        progress("grid search", done, len(chosen))
    numbers.resolved.activations.update({root.name: q for root, q in runner.best().items()})


class _Runner(Interpreter):
    """Runs the float graph; where a layer reads a quantized tensor, adds up what each candidate does to its output."""

    def __init__(self, numbers: Numbers, least: float | None) -> None:
        super().__init__(numbers.captured.module)
        tensors = numbers.annotation.tensors
        self.numbers = numbers
        self.candidates = {
            root: [_scaled(q, s, root, numbers) for s in _shares(least or least_share(tensors.specs[root].bits))]
            for root in tensors.sets()
            if root not in tensors.fixed and (q := numbers.qparams(root))
        }
        self.errors: dict[tuple[Node, Node], list[float]] = {}  # tensor set, reader → squared error of each candidate
        self.powers: dict[tuple[Node, Node], float] = {}
        self.readers: dict[Node, Group] = {g.node: g for g in numbers.annotation.groups if role_of(g.kind) == "layer"}
        read = {tensors.find(g.inputs[0]) for g in self.readers.values()}
        self.alone = {n for n in tensors.parent if tensors.find(n) not in read and n not in tensors.derived}

    def run_node(self, n: Node) -> Tensor:
        result: Tensor = super().run_node(n)
        find = self.numbers.annotation.tensors.find
        if n in self.alone and find(n) in self.candidates:  # no layer with weights reads it: the tensor itself counts
            mass = cell_mass(result, self.numbers.qparams(n).step)
            self._add((find(n), n), lambda q: on_grid(result, q), result, mass)
        group = self.readers.get(n)
        if group is not None and find(group.inputs[0]) in self.candidates:
            source: Tensor = self.env[group.inputs[0]]
            answer = self._activated(group, result)
            mass = cell_mass(answer, self.numbers.qparams(group.output).step)
            others = torch.fx.map_arg(n.args[1:], lambda a: self.env[a])

            def changed(q: QParams) -> Tensor:
                return self._activated(group, n.target(on_grid(source, q), *others, **n.kwargs))  # type: ignore[operator] # call_function

            self._add((find(group.inputs[0]), n), changed, answer, mass)
        return result

    def _add(self, pair: tuple[Node, Node], changed: Callable[[QParams], Tensor], wanted: Tensor, mass: Tensor) -> None:
        found = [relative_error(changed(q), wanted, mass) for q in self.candidates[pair[0]]]
        known = self.errors.get(pair, [0.0] * len(found))
        self.errors[pair] = [k + float(error) for k, (error, _) in zip(known, found, strict=True)]
        self.powers[pair] = self.powers.get(pair, 0.0) + float(found[0][1])

    def best(self) -> dict[Node, QParams]:
        """For each tensor set the candidate with the least sum over its readers of error relative to their output."""
        total: dict[Node, list[float]] = {}
        for (root, reader), errors in self.errors.items():
            size = max(self.powers[root, reader], torch.finfo(torch.float32).tiny)
            known = total.get(root, [0.0] * len(errors))
            total[root] = [k + e / size for k, e in zip(known, errors, strict=True)]
        return {root: self.candidates[root][errors.index(min(errors))] for root, errors in total.items()}

    def _activated(self, group: Group, x: Tensor) -> Tensor:
        """`x` behind the group's fused activation."""
        if group.output is group.node:
            return x
        output = group.output
        found: Tensor = output.target(x, *output.args[1:], **output.kwargs)  # type: ignore[operator] # call_function
        return found


def _shares(least: float) -> list[float]:
    """From `least` to MOST in equal steps, max-min's own 1 among them, those near it first."""
    count = round((MOST - least) / STEP) + 1
    return sorted({*np.linspace(least, MOST, count).round(6).tolist(), 1.0}, key=lambda s: abs(s - 1.0))


def _scaled(qparams: QParams, share: float, root: Node, numbers: Numbers) -> QParams:
    """The grid of `share` times the interval of `qparams`."""
    low, high = (qparams.step * (end - qparams.zero) for end in (qparams.qmin, qparams.qmax))
    return qparams if share == 1.0 else affine(low * share, high * share, numbers.annotation.tensors.specs[root])
