"""The reconstruction engine: spans in forward order, each learned on what the quantized network before it gives.

Every layer's rounding is learned on its sums over the data (edgeq.calib.gram), towards the float network's output with
inputs from the quantized prefix (Nagel et al. 2020, AdaRound, arXiv 2004.10568, section 3.3, "asymmetric reconstruction").
Then, where the recipe asks for it, gradient steps through the span move rounding, biases and activation scales together,
and with the objective `tgpl` they look through the float network behind the span, as in LiDAR-PTQ (Zhou et al. 2024, arXiv
2401.15865, section 3 and algorithm 1). What does not help on frames held out is dropped.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.correct import correct_layer
from edgeq.calib.gram import Gram, rows_of, share_to_sample
from edgeq.calib.objectives.mse import cell_mass, relative_error
from edgeq.calib.objectives.tgpl import TaskLoss
from edgeq.calib.ratios import keep_ratios
from edgeq.calib.rounding import adaround
from edgeq.calib.rounding import method as rounding
from edgeq.calib.soft import Soft
from edgeq.calib.spans import Span, spans
from edgeq.calib.twins import Numbers, Twins
from edgeq.calib.workspace import Part, Workspace
from edgeq.graph.convert import Resolved, snap_weight_scale
from edgeq.graph.ops import WEIGHTED, constant, kind_of, node_arg, value
from edgeq.spec import Progress, QuantSpec, Recipe

HELD: Final = 4  # one run of frames in four judges instead of teaching
JUDGES: Final = 8  # runs of frames that judge, at most
LOOK_EVERY: Final = 4  # a run of frames goes through all of the network behind the span at every fourth of its turns


class Engine:
    """Learns the numbers of `twins` in place."""

    def __init__(
        self, twins: Twins, recipe: Recipe, workspace: Workspace, progress: Progress, task: TaskLoss | None
    ) -> None:
        """`twins` hold every placeholder; `recipe` has a reconstruction; `task` goes with its objective `tgpl`."""
        assert recipe.reconstruction is not None
        self.twins, self.recipe, self.plan = twins, recipe, recipe.reconstruction
        self.workspace, self.progress, self.task = workspace, progress, task
        self.numbers = twins.numbers
        self.done: set[Node] = set()
        # cell masses of the span that is polished, by output and first frame
        self.masses: dict[tuple[Node, int], Tensor] = {}

    def run(self) -> None:
        """Every span in forward order; those the workspace knows are taken from it."""
        found = spans(self.numbers, self.plan.span)
        begins = {s.nodes[0]: (i, s) for i, s in enumerate(found)}
        for node in self.twins.nodes:
            if node in self.done:
                continue
            index, span = begins.get(node, (0, None))
            if span is None:
                self._advance([node])
                continue
            stage = f"reconstruct {span.name}"
            self.progress(stage, index, len(found))
            errors = self.workspace.load(index, span, self.numbers)
            if errors is None:
                errors = self._span(span, self.workspace.part(index, self.numbers))
                self.workspace.save(index, span, self.numbers, errors)
            else:
                self._advance(span.nodes)
            self.progress(f"{stage}: error {errors[0]:.1e} → {errors[1]:.1e}", index + 1, len(found))

    def _advance(self, nodes: Sequence[Node]) -> None:
        self.twins.advance(nodes)
        self.twins.release(nodes)
        self.done.update(nodes)

    def _span(self, span: Span, part: Part) -> tuple[float, float]:
        """Learn what `part` of a span is not yet; returns the squared error of its last layer relative to the output, before
        and after.
        """
        computed: set[Node] = set()
        errors = (0.0, 0.0)
        for node in span.nodes:
            if node in computed:
                continue
            step = [node]
            if node in span.layers:
                known = part.known(node)
                errors = known or self._layer(node)
                if known is None:
                    part.add(node, errors)
                group = self.numbers.groups.get(node)
                step = [node] if group is None or group.output is node else [node, group.output]
            self.twins.advance(step)
            computed.update(step)
        if self.plan.polish:
            before, after = self._polish(span, part)
            self.masses.clear()
            errors = errors[0], errors[1] * after / before if before > 0 else errors[1]
        self.twins.release(span.nodes)
        self.done.update(span.nodes)
        return errors

    # ---------------------------------------------------------------- one layer, on its sums

    def _layer(self, node: Node) -> tuple[float, float]:
        """Learn a layer's rounding; returns its squared error relative to the output before and after."""
        key, source = self.numbers.weighted[node]
        axis = WEIGHTED[kind_of(node) or ""][2]
        resolved, spec = self.numbers.resolved, self.spec(node)
        weight, bias = self._floats(node)
        if source is not None:  # the input's scale may have moved since
            scale = snap_weight_scale(resolved.scales[key], bias, self.numbers.qparams(source).scale[0])
            if not torch.equal(scale, resolved.scales[key]):
                resolved.scales[key] = scale
                resolved.weights[key] = rounding(self.recipe.rounding)(weight, scale, axis, spec)
        layer = adaround.Layer(self.sums(node), resolved.scales[key], spec, bias=bias is not None)
        start = layer.split(resolved.weights[key].float())
        before = layer.errors(start, torch.zeros_like(layer.scales)).sum()
        resolved.weights[key] = adaround.learn(layer, resolved.weights[key], self.plan.steps)
        rows = layer.split(resolved.weights[key].float())
        shift = layer.shift(rows)
        if bias is not None:
            resolved.biases[key] = bias + shift
            if self.recipe.corrected:
                correct_layer(self.twins, node)
            shift = resolved.biases[key] - bias
        power = max(layer.power, torch.finfo(torch.float32).tiny)
        return float(before) / power, float(layer.errors(rows, shift).sum()) / power

    def sums(self, node: Node) -> list[Gram]:
        """A layer's sums over sampled output cells of all frames."""
        twins, source = self.twins, node.args[0]
        assert isinstance(source, Node)
        weight, bias = self._floats(node)
        generator = torch.Generator().manual_seed(zlib.crc32(node.name.encode()))
        grams = [Gram.empty(rows, weight) for rows in rows_of(node)]
        everything = [g.rows.cells_in(value(source).shape) * twins.cache.frames for g in grams]
        with torch.no_grad():
            for start, stop in twins.chunks():
                real, seen = twins.real(source, start, stop), twins.read_by(node, source, start, stop)
                wanted = twins.floats.node(node, {source: real}.__getitem__)
                mass = self._mass(node, wanted)
                if bias is not None:
                    wanted = wanted - (bias if kind_of(node) == "linear" else bias.view(-1, *[1] * (wanted.dim() - 2)))
                for gram, total in zip(grams, everything, strict=True):
                    rows, cells = gram.rows, gram.rows.cells_in(real.shape)
                    count = max(1, round(share_to_sample(rows, total) * cells))
                    picked = torch.randperm(cells, generator=generator)[:count]
                    heavy = torch.ones(count) if mass is None else rows.select(mass[:, None], picked)[:, 0]
                    gram.add(rows.patches(seen, picked), rows.answers(wanted, picked), heavy)
        return [g.finish() for g in grams]

    def _mass(self, node: Node, output: Tensor) -> Tensor | None:
        """Weight of each output cell of a convolution where the recipe balances them."""
        if not self.plan.balanced or kind_of(node) == "linear":
            return None
        group = self.numbers.groups.get(node)
        return cell_mass(output, 0.0 if group is None else self.numbers.qparams(group.output).scale[0])

    def _floats(self, node: Node) -> tuple[Tensor, Tensor | None]:
        """The layer's weight and bias in the float network."""
        weight_at, bias_at, _ = WEIGHTED[kind_of(node) or ""]
        module, weight, bias = self.numbers.captured.module, node.args[weight_at], node_arg(node, bias_at, None)
        assert isinstance(weight, Node)
        return constant(module, weight), constant(module, bias) if isinstance(bias, Node) else None

    def spec(self, node: Node) -> QuantSpec:
        """The grid of a layer's weights."""
        group, annotation = self.numbers.groups.get(node), self.numbers.annotation
        wanted = group.precision if group is not None else annotation.weight_only[self.numbers.weighted[node][0]][1]
        assert wanted.weight is not None
        return wanted.weight

    # ---------------------------------------------------------------- a span, by gradient

    def _polish(self, span: Span, part: Part) -> tuple[float, float]:
        """Gradient steps from the numbers found so far, kept where judges agree; the local loss of these before and after."""
        soft = Soft(
            self.numbers, span, {n: self.spec(n) for n in span.layers}, self._free_scales(span), self._units(span)
        )
        teachers, judges = self._teachers_and_judges()
        with torch.no_grad():
            parts = torch.stack([self._loss(span, self.numbers, *r) for r in judges]).mean(0)
        weight = torch.where(parts > 0, 1.0 / parts, 0.0)  # local and task-guided loss count alike, 1 each at the start

        def loss(step: int) -> Tensor:
            """What the step's frames say; the task-guided loss, by far the dearer, in one turn of four but fourfold."""
            turn, run = divmod(step, len(teachers))
            look = (turn + run) % LOOK_EVERY == 0
            both = self._loss(span, soft, *teachers[run], look=look)
            return (both * weight * torch.tensor([1.0, LOOK_EVERY])).sum()

        soft.learn(loss, self.plan.polish, part)
        found = soft.hard()
        if not self._ratios_hold(found):
            found.activations = dict(self.numbers.resolved.activations)
        trial = Numbers(self.numbers.captured, self.numbers.annotation, found)
        with torch.no_grad():
            after = torch.stack([self._loss(span, trial, *r) for r in judges]).mean(0)
        if float((after * weight).sum()) >= float((parts * weight).sum()):
            return float(parts[0]), float(parts[0])
        self.numbers.resolved.update(found)
        self.twins.advance(span.nodes, real=False)
        return float(parts[0]), float(after[0])

    def _teachers_and_judges(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Runs of frames to learn from and to judge by; both have positives where the task-guided loss needs them."""
        runs = [(a, min(a + self.plan.batch, b)) for a, b in self.twins.chunks(self.plan.batch)]
        guiding = [r for r in runs if self.task is None or self.task.guides(*r)]
        runs = guiding + [r for r in runs if r not in guiding]
        judges = runs[::HELD][:JUDGES]
        return ([r for i, r in enumerate(runs) if i % HELD] if len(guiding) >= HELD else runs), judges

    def _loss(self, span: Span, numbers: Numbers, start: int, stop: int, *, look: bool = True) -> Tensor:
        """Local and task-guided loss of frames `start` to `stop` with the span as `numbers` have it, float32 [2].

        look: false leaves the task-guided loss out, as 0.
        """
        twins, inside = self.twins, set(span.nodes)
        values = {i: twins.seen(i, start, stop) for i in _outside(span.nodes)}
        values = twins.run(span.nodes, values, lambda node, look: twins.quantized_node(node, look, numbers))
        error, power = torch.zeros(()), torch.zeros(())
        for node in span.nodes:
            if not set(node.users) <= inside:
                wanted = twins.real(node, start, stop)
                if not isinstance(wanted, Tensor):  # several results: chunk, split, max along an axis
                    for part, real in zip(values[node], wanted, strict=True):
                        if real.is_floating_point():
                            more, size = relative_error(part, real, None)
                            error, power = error + more, power + size
                    continue
                if self.plan.balanced and (node, start) not in self.masses:
                    step = self.numbers.qparams(node).scale[0] if node in self.numbers.makers else 0.0
                    self.masses[node, start] = cell_mass(wanted, step)
                more, size = relative_error(values[node], wanted, self.masses.get((node, start)))
                error, power = error + more, power + size
        local = error / power.clamp(min=torch.finfo(torch.float32).tiny)
        guided = look and self.task is not None
        return torch.stack([local, self._task(span, values, start, stop) if guided else torch.zeros(())])

    def _task(self, span: Span, values: dict[Node, Tensor], start: int, stop: int) -> Tensor:
        """The task-guided loss: what lies behind the span computes in float on what the span gives."""
        assert self.task is not None
        if not self.task.guides(start, stop):
            return torch.zeros(())
        inside = set(span.nodes)
        rest = [n for n in self.twins.nodes if n not in self.done and n not in inside]
        known = {i: values[i] if i in inside else self.twins.seen(i, start, stop) for i in _outside(rest)}
        found = self.twins.run(rest, known, self.twins.floats.node)
        results = self.numbers.captured.module.graph.output_node().args[0]
        outputs = {i: found.get(n, values.get(n)) for i, n in enumerate(results)}  # type: ignore[arg-type] # a tuple of nodes
        return self.task.loss({i: y for i, y in outputs.items() if y is not None}, start, stop)

    def _free_scales(self, span: Span) -> list[Node]:
        """Tensor sets that this span alone produces and whose numbers no kernel insists on."""
        if not self.plan.activations:
            return []
        tensors, inside = self.numbers.annotation.tensors, set(span.nodes)
        sets: dict[Node, set[Node]] = {}
        for node in tensors.parent:
            sets.setdefault(tensors.find(node), set()).add(node)
        return [root for root, members in sets.items() if members <= inside and root not in tensors.fixed]

    def _units(self, span: Span) -> dict[Node, float]:
        """For each layer the step of its output's grid; where it has none, 1/256 of the float output's size."""
        units = {}
        for node in span.layers:
            group = self.numbers.groups.get(node)
            if group is not None:
                units[node] = self.numbers.qparams(group.output).scale[0]
            else:
                units[node] = float(self.twins.real(node, 0, 1).square().mean().sqrt()) / 256
        return units

    def _ratios_hold(self, found: Resolved) -> bool:
        """Whether every kernel still takes the ratios of scales."""
        kept = dict(found.activations)
        keep_ratios(self.numbers.annotation, kept, found.scales)
        return kept == found.activations


def _outside(nodes: Sequence[Node]) -> list[Node]:
    """What `nodes` read that they do not compute, constants left out."""
    inside = set(nodes)
    return list(dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in inside and i.op != "get_attr"))
