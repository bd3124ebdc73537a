"""A network of which some layers change their precision, all else as in one plan: what that does to its outputs.

Calibrated once; a change costs its own numbers and, for each frame, the nodes that compute otherwise because of it.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.calibrate import calibrate, fingerprint
from edgeq.calib.data.batches import stacks
from edgeq.calib.data.observation import Statistics, answers
from edgeq.calib.floats import Floats, Look
from edgeq.calib.objectives import Hook
from edgeq.calib.twins import Numbers
from edgeq.graph.annotate import annotate, default_plan
from edgeq.graph.capture import Captured, leaves_like
from edgeq.graph.coded import Coded
from edgeq.graph.ops import constant
from edgeq.graph.ordered import ordered
from edgeq.spec import EdgeqError, Progress, QuantPlan, Recipe, Target

FRAMES: Final = 64  # calibration batches on which outputs are compared
MEMORY: Final = (
    1 << 28
)  # float32 values of the base network that are kept: 1 GiB; the rest is computed again for each change

Change = Mapping[str, str]  # lines of a plan: layer key → precision
Outputs = tuple[Tensor, ...]
Score = Callable[[Callable[[Sequence[Tensor]], Outputs]], Mapping[str, float]]


@dataclass(frozen=True)
class Variant:
    """Numbers of one plan. changed: the nodes that compute otherwise than in the base, or read of one that does."""

    numbers: Numbers
    halves: frozenset[Node]
    changed: frozenset[Node]


class Study:
    """What a sensitivity is measured on (edgeq.calib.sensitivity).

    frames: flat calibration batches on which outputs are compared; stacks: the same, as many along the first axis as are computed
    at once; counts: how many each has. hook: the task's function of a name. score: the task's metric
    of `predict(flat inputs) -> outputs`; metric: the name of the number that counts, None: the first.
    """

    def __init__(
        self,
        captured: Captured,
        target: Target,
        recipe: Recipe,
        data: Iterable[Any],
        *,
        base: Change | None = None,
        frames: int = FRAMES,
        statistics: Statistics | None = None,
        hook: Hook = lambda name: None,
        score: Score | None = None,
        metric: str | None = None,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        """data: calibration batches, which can be gone through again. base: the precision of layers that do not change, as lines
        of a plan; those without one, or all, are float. frames: how many batches are compared. statistics: of `captured`, where
        an earlier calibration left some, so that none is made anew.

        Raises:
            EdgeqError: a batch does not fit the network, or a line the target.
        """
        self.captured, self.target, self.recipe, self.data = captured, target, recipe, data
        self.hook, self.score, self.metric, self.progress = hook, score, metric, progress
        self.statistics = Statistics() if statistics is None else statistics
        self.base: Change = dict(base or {})
        self.floats = Floats(captured)
        raw = itertools.islice(data, frames)
        self.frames = [leaves_like(captured.nested, x, f"calibration batch {i}") for i, x in enumerate(raw)]
        if not self.frames:
            raise EdgeqError(
                "a sensitivity is measured on calibration batches, and there are none: let calibration() yield some"
            )
        if self.statistics.looked is None:  # of every tensor that any plan may quantize
            self._calibrated(default_plan(captured, target, recipe.name).layers)
        with ordered():
            groups = list(stacks(self.floats, self.frames))
        self.counts = [len(group) for group in groups]
        self.stacks = [
            tuple(torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*group, strict=True))
            for group in groups
        ]
        self._values: dict[int, dict[Node, Any]] = {}  # of the base, as many as MEMORY allows
        self._room = MEMORY
        self._floats: dict[int, Outputs] = {}

    @cached_property
    def key(self) -> str:
        """A hash of all that decides outputs but for base and change: weights, recipe, target, batches, frames."""
        found = hashlib.sha256(fingerprint(self.captured, self.recipe).digest())
        for batch in self.data:
            for tensor in leaves_like(self.captured.nested, batch, "calibration batch"):
                found.update(tensor.contiguous().numpy().tobytes())
        found.update(repr((self.target.name, len(self.frames))).encode())
        return found.hexdigest()

    @cached_property
    def variant(self) -> Variant:
        """The base itself."""
        return Variant(*self._calibrated(self.base), frozenset())

    def change(self, lines: Change) -> Variant:
        """The base with other precisions of some layers.

        Raises:
            EdgeqError: an unknown layer, or a precision that the target does not compute it in.
        """
        numbers, halves = self._calibrated({**self.base, **lines})
        changed: set[Node] = set()
        for node in self.floats.nodes:
            apart = (node in halves) is not (node in self.variant.halves) or not _alike(
                numbers, self.variant.numbers, node
            )
            if apart or any(source in changed for source in node.all_input_nodes):
                changed.add(node)
        return Variant(numbers, halves, frozenset(changed))

    def _calibrated(self, layers: Change) -> tuple[Numbers, frozenset[Node]]:
        plan = QuantPlan(self.target.name, self.recipe.name, dict(layers))
        again = partial(annotate, self.captured, self.target, plan)
        annotation, resolved = calibrate(
            self.captured, again(), self.recipe, self.data, self.progress,
            hook=self.hook, again=again, statistics=self.statistics, settled=frozenset(layers),
        )  # fmt: skip
        if resolved.constants:
            raise EdgeqError(
                f"recipe {self.recipe.name!r} scales the network's own weights, so that no layer can be changed alone: measure "
                "with one that does not, such as default or mse"
            )
        return Numbers(self.captured, annotation, resolved), frozenset(annotation.halves)

    def answers(self, variant: Variant) -> Iterator[tuple[Outputs, Outputs]]:
        """The float network's outputs and the variant's, for some frames at a time stacked along the first axis."""
        for index in range(len(self.stacks)):
            with torch.no_grad(), ordered():
                values = self._base(index)
                found = self._run(variant, dict(values), variant.changed)
                pair = self._float(index), tuple(found[node] for node in answers(self.captured))
            yield pair

    def predict(self, variant: Variant, inputs: Sequence[Tensor]) -> Outputs:
        """The variant's outputs for flat inputs of one batch."""
        with torch.no_grad(), ordered():
            given = dict(zip(self.floats.placeholders, inputs, strict=True))
            found = self._run(variant, given, self.floats.nodes)
        return tuple(found[node] for node in answers(self.captured))

    def _base(self, index: int) -> dict[Node, Any]:
        """Every node's value in the base, for a stack of frames."""
        if index in self._values:
            return self._values[index]
        given = dict(zip(self.floats.placeholders, self.stacks[index], strict=True))
        found = self._run(self.variant, given, self.floats.nodes)
        size = sum(x.numel() for x in found.values() if isinstance(x, Tensor))
        if size <= self._room:
            self._room -= size
            self._values[index] = found
        return found

    def _float(self, index: int) -> Outputs:
        if index not in self._floats:
            found = dict(self.floats.walk(self.stacks[index]))
            self._floats[index] = tuple(found[node] for node in answers(self.captured))
        return self._floats[index]

    def _run(self, variant: Variant, values: dict[Node, Any], nodes: Iterable[Node]) -> dict[Node, Any]:
        """`values` with those of `nodes` in the graph's order."""
        wanted = set(nodes)
        for node in self.floats.nodes:
            if node in wanted:
                compute = _half if node in variant.halves else variant.numbers.computed
                values[node] = compute(self.floats, node, values.__getitem__)
        return values


def _half(floats: Floats, node: Node, look: Look) -> Any:
    """`node` in float16 between float32 neighbours, as the QDQ program has it."""
    constants = {n: _cast(constant(floats.captured.module, n)) for n in node.all_input_nodes if n.op == "get_attr"}
    return Floats(floats.captured, constants).node(node, lambda n: _cast(look(n))).float()


def _cast(x: Any) -> Any:
    return x.half() if isinstance(x, Tensor) and x.dtype == torch.float32 else x


def _alike(one: Numbers, other: Numbers, node: Node) -> bool:
    """Whether two sets of numbers make the same of what `node` reads."""
    return _grids(one, node) == _grids(other, node) and _same_weights(one, other, node)


def _grids(numbers: Numbers, node: Node) -> list[Any]:
    """The grids on which `node` puts what it reads and what it makes."""
    sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
    entering = [n in numbers.annotation.tensors.parent and n not in numbers.makers for n in sources]
    reads = node in numbers.groups
    made = node in numbers.makers and node not in numbers.moved
    return [
        *(numbers.qparams(n) if reads and enters else None for n, enters in zip(sources, entering, strict=True)),
        numbers.qparams(node) if made else None,
    ]


def _same_weights(one: Numbers, other: Numbers, node: Node) -> bool:
    if node not in one.weighted or node not in other.weighted:
        return node not in one.weighted and node not in other.weighted
    key, _ = one.weighted[node]
    a, b = one.resolved.weights[key], other.resolved.weights[key]
    if a is not b and not _same_codes(a, b):
        return False
    biases = [numbers.constants(node)[1] for numbers in (one, other)]
    return biases[0] is biases[1] or (None not in biases and torch.equal(*biases))  # type: ignore[arg-type] # no None there


def _same_codes(a: Coded, b: Coded) -> bool:
    zeros = (a.zero, b.zero)
    same = zeros[0] is zeros[1] or (None not in zeros and torch.equal(*zeros))  # type: ignore[arg-type] # no None there
    return same and a.grid == b.grid and torch.equal(a.codes, b.codes) and torch.equal(a.scale, b.scale)
