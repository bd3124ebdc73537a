"""Step `round`: which codes the weights get.

A solver that looks at no data rounds all layers at once. One that reads a layer's sums over the data (edgeq.calib.gram) is asked
layer by layer in forward order, with inputs from the quantized layers before, towards the float network's output (Nagel et al.
2020, AdaRound, arXiv 2004.10568, section 3.3, "asymmetric reconstruction").
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.bench import Bench
from edgeq.calib.cells import cell_mass
from edgeq.calib.data.observation import Statistics
from edgeq.calib.floats import Floats
from edgeq.calib.gram import Gram, rows_of, share_to_sample
from edgeq.calib.layers import WeightedLayer
from edgeq.calib.needs import DATA
from edgeq.calib.problem import Problem
from edgeq.calib.solvers import solver
from edgeq.calib.spans import Span
from edgeq.calib.walk import Errors, Extent, Walk
from edgeq.calib.workspace import Part
from edgeq.graph.coded import Coded, along, encode
from edgeq.graph.numbers import snap_weight_scale
from edgeq.graph.ops import value
from edgeq.graph.ordered import parted
from edgeq.spec import EdgeqError


@dataclass(frozen=True, slots=True)
class Round:
    """solver: of edgeq.calib.solvers, with its option, as `adaround:250`; codes of a table stay the nearest where it takes none.

    start: a solver that reads no data, whose codes the other begins with. balanced: empty cells of a sparse map weigh at most as
    much together as the occupied ones.
    """

    solver: str = "nearest"
    start: str = "nearest"
    balanced: bool = False

    def __post_init__(self) -> None:
        """Raise EdgeqError where there is no such solver."""
        solver(self.solver)
        if solver(self.start).sums:
            raise EdgeqError(f"round: start is {self.start!r}, which reads data itself; use nearest or squant")

    @property
    def needs(self) -> frozenset[str]:
        """Data, where the solver reads sums."""
        return frozenset({DATA}) if self.learns else frozenset()

    @property
    def learns(self) -> bool:
        """Whether layers are asked for one by one."""
        return solver(self.solver).sums

    @property
    def extent(self) -> Extent:
        """Layers are solved one by one."""
        return "layer"

    @property
    def activations(self) -> bool:
        """Their scales stay."""
        return False

    def frames(self, floats: Floats) -> None:
        """All of them."""

    def run(self, bench: Bench) -> Round | None:
        """Codes that need no data; the rest is found on the walk."""
        name = self.start if self.learns else self.solver
        first = solver(name)
        for x in bench.layers.values():
            start = bench.resolved.weights[x.key]
            if x.grid.table is None or first.tables:
                bench.resolved.weights[x.key] = _found(bench.statistics, name, x, start)
        return self if self.learns else None

    def layer(self, walk: Walk, node: Node) -> Errors:
        """Solve a layer; no output channel is worse than in its start."""
        x, resolved = walk.layers[node], walk.numbers.resolved
        if x.grid.table is not None and not solver(self.solver).tables:
            return 0.0, 0.0
        start = self._started(walk, x)
        problem = Problem(x.weight, x.axis, start, self.sums(walk, x), bias=x.bias is not None)
        before = problem.errors(problem.split(start.decode()), torch.zeros(problem.channels)).sum()
        found = solver(self.solver).solve(problem, start)
        found = self._legal(walk, x, start, found)
        errors = [problem.errors(problem.split(coded.decode())) for coded in (start, found)]
        resolved.weights[x.key], _ = problem.better(start, errors[0], found, errors[1])
        weights = problem.split(resolved.weights[x.key].decode())
        shift = problem.shift(weights)
        if x.bias is not None:
            resolved.biases[x.key] = x.bias + shift
        power = max(problem.power, torch.finfo(torch.float32).tiny)
        return float(before) / power, float(problem.errors(weights, shift).sum()) / power

    def close(self, walk: Walk, span: Span, part: Part) -> None:
        """Nothing is left to do."""

    def _started(self, walk: Walk, x: WeightedLayer) -> Coded:
        """The codes to begin with, anew where the input's scale has moved since."""
        start = walk.numbers.resolved.weights[x.key]
        scale = self._snapped(walk, x, start)
        if torch.equal(scale, start.scale):
            return start
        again = encode(x.weight, x.grid, scale)
        return solver(self.start).solve(Problem(x.weight, x.axis, again), again)

    @staticmethod
    def _snapped(walk: Walk, x: WeightedLayer, coded: Coded) -> Tensor:
        """The scales of `coded`, as wide as the bias needs them."""
        if x.source is None:
            return coded.scale
        source = walk.numbers.qparams(x.source)
        return along(snap_weight_scale(coded.scale.reshape(-1), x.bias, source), x.axis, x.weight.dim())

    def _legal(self, walk: Walk, x: WeightedLayer, start: Coded, found: Coded) -> Coded:
        """`found`, or the start where a kernel does not take the scales that the solver chose."""
        if torch.equal(found.scale, start.scale):
            return found
        trial = walk.numbers.resolved.copy()
        trial.weights[x.key] = found
        return found if torch.equal(self._snapped(walk, x, found), found.scale) and walk.ratios_hold(trial) else start

    @parted()
    def sums(self, walk: Walk, x: WeightedLayer) -> list[Gram]:
        """A layer's sums over sampled output cells of all frames."""
        twins, source = walk.twins, x.node.args[0]
        assert isinstance(source, Node)
        generator = torch.Generator().manual_seed(zlib.crc32(x.node.name.encode()))
        grams = [Gram.empty(rows, x.weight) for rows in rows_of(x.node)]
        everything = [g.rows.cells_in(value(source).shape) * twins.cache.frames for g in grams]
        with torch.no_grad():
            for start, stop in twins.chunks():
                real, seen = twins.real(source, start, stop), twins.read_by(x.node, source, start, stop)
                wanted = twins.floats.node(x.node, {source: real}.__getitem__)
                mass = self._mass(walk, x, wanted)
                if x.bias is not None:
                    wanted = wanted - (x.bias if x.kind == "linear" else x.bias.view(-1, *[1] * (wanted.dim() - 2)))
                for gram, total in zip(grams, everything, strict=True):
                    rows, cells = gram.rows, gram.rows.cells_in(real.shape)
                    count = max(1, round(share_to_sample(rows, total) * cells))
                    picked = torch.randperm(cells, generator=generator)[:count]
                    heavy = torch.ones(count) if mass is None else rows.select(mass[:, None], picked)[:, 0]
                    gram.add(rows.patches(seen, picked), rows.answers(wanted, picked), heavy)
        return [g.finish() for g in grams]

    def _mass(self, walk: Walk, x: WeightedLayer, output: Tensor) -> Tensor | None:
        """Weight of each output cell of a convolution where they are balanced."""
        if not self.balanced or x.kind == "linear":
            return None
        group = walk.numbers.groups.get(x.node)
        return cell_mass(output, 0.0 if group is None else walk.numbers.qparams(group.output).step)


def _found(kept: Statistics | None, name: str, x: WeightedLayer, start: Coded) -> Coded:
    """What the solver called `name` makes of `start` without data, or made of it for another plan."""
    by, problem = solver(name), Problem(x.weight, x.axis, start)
    if kept is None or not by.kept:
        return by.solve(problem, start)
    told = hashlib.sha256(repr((name, x.axis, start.grid, x.weight.shape, start.scale.shape)).encode())
    for tensor in (x.weight, start.codes, start.scale, start.zero):
        told.update(b"" if tensor is None else tensor.detach().contiguous().numpy().tobytes())
    key = told.hexdigest()
    if key not in kept.rounded:
        kept.rounded[key] = by.solve(problem, start)
    return kept.rounded[key]
