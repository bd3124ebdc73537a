"""The reconstruction engine: spans in forward order, each learned on what the quantized network before it gives.

A layer's rounding is learned on its sums over the data, towards the float network's output of the same layer with inputs
from the quantized prefix (Nagel et al. 2020, AdaRound, arXiv 2004.10568, section 3.3, "asymmetric reconstruction").
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.gram import Gram, share_to_sample, rows_of
from edgeq.calib.objectives.mse import cell_mass
from edgeq.calib.ranges.weights import channel_scales
from edgeq.calib.rounding import adaround
from edgeq.calib.rounding import method as rounding
from edgeq.calib.spans import Span, spans
from edgeq.calib.twins import Numbers, Twins
from edgeq.graph.convert import snap_weight_scale
from edgeq.graph.ops import WEIGHTED, constant, kind_of, node_arg, value
from edgeq.spec import QuantSpec, Recipe

Progress = Callable[[str, int, int | None], None]
SEED = 0


class Engine:
    """Learns the numbers of `twins` in place."""

    def __init__(self, twins: Twins, recipe: Recipe, progress: Progress) -> None:
        """`twins` hold every placeholder; `recipe` has a reconstruction."""
        assert recipe.reconstruction is not None
        self.twins, self.recipe, self.plan, self.progress = twins, recipe, recipe.reconstruction, progress
        self.numbers = twins.numbers

    def run(self) -> None:
        """Every span in forward order."""
        found = spans(self.numbers, self.plan.span)
        begins = {s.nodes[0]: (i, s) for i, s in enumerate(found)}
        done: set[Node] = set()
        for node in self.twins.nodes:
            if node in done:
                continue
            index, span = begins.get(node, (0, None))
            if span is None:
                self.twins.advance([node])
                self.twins.release([node])
                continue
            self.progress(f"reconstruct {span.name}", index, len(found))
            before, after = self._span(span)
            done.update(span.nodes)
            self.progress(f"reconstruct {span.name}: error {before:.2e} → {after:.2e}", index + 1, len(found))

    def _span(self, span: Span) -> tuple[float, float]:
        """Learn a span; returns its output's relative error before and after."""
        errors = [(0.0, 0.0)]
        done: set[Node] = set()
        for node in span.nodes:
            if node in done:
                continue
            step = [node]
            if node in span.layers:
                errors.append(self._layer(node))
                group = self.numbers.groups.get(node)
                step = [node] if group is None or group.output is node else [node, group.output]
            self.twins.advance(step)
            done.update(step)
        self.twins.release(span.nodes)
        return errors[-1]

    def _layer(self, node: Node) -> tuple[float, float]:
        """Learn a layer's rounding; returns its error relative to the output before and after."""
        key, source = self.numbers.weighted[node]
        _, bias_at, axis = WEIGHTED[kind_of(node) or ""]
        module, resolved = self.numbers.captured.module, self.numbers.resolved
        weight = constant(module, node.args[1])  # type: ignore[arg-type] # annotate takes constant weights only
        bias_node = node_arg(node, bias_at, None)
        bias = constant(module, bias_node) if bias_node is not None else None
        spec = self.spec(node)
        if source is not None:
            scale = snap_weight_scale(resolved.scales[key], bias, self.numbers.qparams(source).scale[0])
            if not torch.equal(scale, resolved.scales[key]):
                resolved.scales[key] = scale
                resolved.weights[key] = rounding(self.recipe.rounding)(weight, scale, axis, spec)
        layer = adaround.Layer(self.sums(node, bias), weight, resolved.scales[key], spec, bias=bias is not None)
        start = layer.split(resolved.weights[key].float())
        before = float(layer.errors(start, torch.zeros_like(layer.scales)).sum())
        integers = adaround.learn(layer, resolved.weights[key], self.plan.steps)
        rows = layer.split(integers.float())
        shift = layer.shift(rows)
        resolved.weights[key] = integers
        if bias is not None:
            resolved.biases[key] = bias + shift
        return before / layer.power, float(layer.errors(rows, shift).sum()) / layer.power

    def spec(self, node: Node) -> QuantSpec:
        """The grid of a layer's weights."""
        group = self.numbers.groups.get(node)
        wanted = group.precision if group is not None else self.numbers.annotation.weight_only[self.numbers.weighted[node][0]][1]
        assert wanted.weight is not None
        return wanted.weight

    def sums(self, node: Node, bias: Tensor | None) -> list[Gram]:
        """A layer's sums over sampled output cells of all frames."""
        twins, source = self.twins, node.args[0]
        assert isinstance(source, Node)
        generator = torch.Generator().manual_seed(zlib.crc32(node.name.encode()) + SEED)
        grams = [Gram.empty(rows) for rows in rows_of(node)]
        everything = [g.rows.cells_in(value(source).shape) * twins.cache.frames for g in grams]
        with torch.no_grad():
            for start, stop in twins.chunks():
                real, seen = twins.real(source, start, stop), twins.read_by(node, source, start, stop)
                wanted = twins.float_node(node, {source: real}.__getitem__)
                if bias is not None:
                    wanted = wanted - (bias if kind_of(node) == "linear" else bias.view(-1, *[1] * (wanted.dim() - 2)))
                for gram, total in zip(grams, everything, strict=True):
                    cells = gram.rows.cells_in(real.shape)
                    count = max(1, round(share_to_sample(gram.rows, total) * cells))
                    picked = torch.randperm(cells, generator=generator)[:count]
                    mass = torch.ones(count)
                    gram.add(gram.rows.patches(seen, picked), gram.rows.answers(wanted, picked), mass)
        return [g.finish() for g in grams]
