"""The float network and the quantized one side by side, one node at a time, over frames that lie in a cache.

The quantized side computes in float32 between quantize and dequantize, as the QDQ program does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.cache import Cache
from edgeq.calib.floats import Floats, Look
from edgeq.graph.annotate import Annotation
from edgeq.graph.capture import Captured
from edgeq.graph.coded import dequantize, on_grid
from edgeq.graph.coded import quantize as stored
from edgeq.graph.kinds import KINDS, role_of, weights_of
from edgeq.graph.numbers import Resolved, snap_bias
from edgeq.graph.ops import constant, kind_of, node_arg
from edgeq.spec import QParams

CHUNK: Final = 1 << 23  # float32 values of the largest activation that are computed at once: 32 MiB


class Numbers:
    """What the quantized side computes with: `Resolved`, read as float32 constants."""

    def __init__(self, captured: Captured, annotation: Annotation, resolved: Resolved) -> None:
        """`resolved` is read at each use: it may grow and change."""
        self.captured, self.annotation, self.resolved = captured, annotation, resolved
        self.groups = {g.node: g for g in annotation.groups}
        self.makers = {g.output: g for g in annotation.groups}
        find = annotation.tensors.find
        self.moved = {
            g.output
            for g in annotation.groups
            if KINDS[g.kind].keeps_grid and g.node is g.output and {find(i) for i in g.inputs} == {find(g.output)}
        }
        self.weighted = {g.node: (g.key, g.inputs[0]) for g in annotation.groups if role_of(g.kind) == "layer"}
        self.weighted |= {n: (key, None) for key, (n, _) in annotation.weight_only.items()}  # type: ignore[misc] # None: float input

    def qparams(self, node: Node) -> QParams:
        """Scale and zero point of a quantized tensor."""
        return self.resolved.activations[self.annotation.tensors.key(node)]

    def activation(self, node: Node, x: Tensor) -> Tensor:
        """`x`, the float value of the quantized tensor `node`, on its grid."""
        return on_grid(x, self.qparams(node))

    def constants(self, node: Node) -> tuple[Tensor, Tensor | None]:
        """Dequantized weight and snapped bias of a layer."""
        key, source = self.weighted[node]
        coded = self.resolved.weights[key]
        bias_node = node_arg(node, weights_of(kind_of(node)).bias, None)
        bias = (
            self.resolved.biases.get(key, constant(self.captured.module, bias_node)) if bias_node is not None else None
        )
        if bias is not None and source is not None:
            bias = snap_bias(bias, coded.scale.reshape(-1), self.qparams(source).step)
        return coded.decode(), bias

    def as_read(self, reader: Node, node: Node, x: Any) -> Any:
        """What `reader` gets of `node`, whose value is `x`: a float is quantized for the integer operators among its readers."""
        outside = node in self.annotation.tensors.parent and node not in self.makers
        return self.activation(node, x) if outside and reader in self.groups else x

    def unrounded(self, floats: Floats, node: Node, look: Look) -> Any:
        """Compute `node` with the quantized constants, before its value goes on a grid."""

        def read(n: Node) -> Any:
            return constant(self.captured.module, n) if n.op == "get_attr" else self.as_read(node, n, look(n))

        args = list(torch.fx.map_arg(node.args, read))
        if node in self.weighted:
            at = weights_of(kind_of(node))
            weight, bias = self.constants(node)
            args[at.weight] = weight
            if bias is not None:
                args[at.bias] = bias
        return node.target(*floats.resized(node, args), **torch.fx.map_arg(node.kwargs, read))  # type: ignore[operator] # call_function

    def computed(self, floats: Floats, node: Node, look: Look) -> Any:
        """Compute `node` with the quantized constants and put its value on its grid where it has one."""
        return self.on_grid(node, self.unrounded(floats, node, look))

    def on_grid(self, node: Node, result: Any) -> Any:
        """What `node` computes, on its grid where it has one."""
        return self.activation(node, result) if node in self.makers and node not in self.moved else result


class Twins:
    """Runs nodes of the captured graph on both sides; values pass through the cache and leave it after their last use.

    Frames are stacked along the first axis where the network allows it. Cache names: `float <node>` and, for whatever
    differs from it, `quantized <node>`, int8 where the node's value is quantized.
    """

    def __init__(self, numbers: Numbers, cache: Cache, frames: int | None = None) -> None:
        """`cache` holds the float value of every placeholder; only its first `frames` frames are computed, None: all."""
        self.numbers, self.cache = numbers, cache
        self.frames = cache.frames if frames is None else min(frames, cache.frames)
        graph = numbers.captured.module.graph
        self.floats = Floats(numbers.captured)
        self.nodes = self.floats.nodes
        self.pending = {n: {u for u in n.users if u.op == "call_function"} for n in graph.nodes}
        several = self.floats.fits(CHUNK) > 1 and self.frames > 1
        two = [[self.real(n, i, i + 1) for n in self.floats.placeholders] for i in (0, 1)] if several else []
        self.size = self.floats.fits(CHUNK) if several and self.floats.stackable(*two) else 1

    def chunks(self, size: int = 1 << 30) -> Iterator[tuple[int, int]]:
        """Ranges of frames, each at most `size` and as many as are computed at once."""
        step = min(size, self.size)
        for start in range(0, self.frames, step):
            yield start, min(start + step, self.frames)

    def real(self, node: Node, start: int, stop: int) -> Any:
        """The float network's value of `node` for a range of frames; a list where it has several."""
        return self.cache.read(f"float {node.name}", start, stop)

    def seen(self, node: Node, start: int, stop: int) -> Any:
        """The quantized network's value of `node` for a range of frames, before a reader of its own quantizes it."""
        name = f"quantized {node.name}"
        if name not in self.cache:
            return self.real(node, start, stop)
        found = self.cache.read(name, start, stop)
        if node not in self.numbers.makers:
            return found
        return dequantize(found, self.numbers.qparams(node))

    def read_by(self, reader: Node, node: Node, start: int, stop: int) -> Any:
        """What the quantized `reader` gets of `node`."""
        return self.numbers.as_read(reader, node, self.seen(node, start, stop))

    def quantized_node(self, node: Node, look: Look, numbers: Numbers | None = None) -> Any:
        """Compute `node` with the quantized constants and put its value on its grid where it has one."""
        return (numbers or self.numbers).computed(self.floats, node, look)

    def advance(self, nodes: Sequence[Node], *, real: bool = True, keep: Iterable[Node] = ()) -> None:
        """Compute `nodes` for all frames on both sides (`real` false: the quantized side again), and drop what is done.

        keep: values that stay although every reader is computed.
        """
        inside = set(nodes)
        outside = list(
            dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in inside and i.op != "get_attr")
        )
        wanted = [n for n in nodes if not set(n.users) <= inside or n in keep or _answers(n)]
        with torch.no_grad():
            for start, stop in self.chunks():
                if real:
                    floats = self.run(nodes, {n: self.real(n, start, stop) for n in outside}, self.floats.node)
                    for n in wanted:
                        self.cache.write(f"float {n.name}", start, floats[n], stop - start)
                values = self.run(nodes, {n: self.seen(n, start, stop) for n in outside}, self.quantized_node)
                for n in wanted:
                    result = stored(values[n], self.numbers.qparams(n)) if n in self.numbers.makers else values[n]
                    self.cache.write(f"quantized {n.name}", start, result, stop - start)

    def run(
        self, nodes: Iterable[Node], values: dict[Node, Any], compute: Callable[[Node, Look], Any]
    ) -> dict[Node, Any]:
        """`values` with those of `nodes` added, tuples left out."""
        for node in nodes:
            values[node] = compute(node, values.__getitem__)
        return values

    def release(self, nodes: Iterable[Node], keep: Iterable[Node] = ()) -> None:
        """Count `nodes` as computed and drop every value that nobody will read, but those of `keep`."""
        kept = set(keep)
        for node in nodes:
            for source in (*node.all_input_nodes, node):
                self.pending[source].discard(node)
                if not self.pending[source] and source not in kept:
                    self.cache.drop(f"float {source.name}")
                    self.cache.drop(f"quantized {source.name}")


def _answers(node: Node) -> bool:
    return any(u.op == "output" for u in node.users)
