"""The float network node by node, on one calibration batch or on several stacked along the first axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.graph.capture import Captured
from edgeq.graph.ops import constant, kind_of, value

Look = Callable[[Node], Any]


class Floats:
    """Computes nodes of the captured graph, which was traced for one batch; stacking more saves calls, not arithmetic."""

    def __init__(self, captured: Captured, replaced: Mapping[Node, Tensor] = {}) -> None:
        """Nothing is computed yet. replaced: other values for constants of the graph."""
        self.captured, self.replaced = captured, replaced
        graph = captured.module.graph
        self.nodes = [n for n in graph.nodes if n.op == "call_function"]
        self.placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        self.first = next((t.shape[0] for t in captured.example if t.dim()), 1)  # examples in one batch
        made = [n for n in (*self.placeholders, *self.nodes) if isinstance(n.meta.get("val"), Tensor)]
        self.largest = max(value(n).numel() for n in made)  # values of the largest tensor of one batch

    def fits(self, values: int) -> int:
        """Batches whose largest tensor, stacked, has at most so many `values`; one at least."""
        return max(1, values // self.largest)

    def node(self, node: Node, look: Look) -> Any:
        """Compute `node`; `look` gives the values it reads."""

        def read(n: Node) -> Any:
            if n.op != "get_attr":
                return look(n)
            return self.replaced[n] if n in self.replaced else constant(self.captured.module, n)

        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), read)
        return node.target(*self.resized(node, args), **kwargs)  # type: ignore[operator] # call_function

    def resized(self, node: Node, args: Sequence[Any]) -> Sequence[Any]:
        """Reshapes name the number of examples in a batch; stacked batches have more."""
        if kind_of(node) != "reshape" or len(args) < 2 or not isinstance(args[1], (list, tuple)):
            return args
        sizes = list(args[1])
        same = (
            isinstance(args[0], Tensor)
            and sizes
            and sizes[0] == self.first
            and value(node.args[0]).shape[:1] == (self.first,)
        )
        return [args[0], [args[0].shape[0], *sizes[1:]], *args[2:]] if same else args

    def walk(
        self,
        inputs: Sequence[Tensor],
        seen: Callable[[Node, Node, Any], Any] = lambda reader, node, value: value,
        made: Callable[[Node, Any], Any] = lambda node, value: value,
    ) -> Iterator[tuple[Node, Any]]:
        """Every placeholder and node with its value, in order; a value is let go after its last reader.

        seen: (reader, node, its value) → what the reader reads of it. made: (node, what it computes) → its value.
        """
        left = {n: len(n.users) for n in (*self.placeholders, *self.nodes)}
        values: dict[Node, Any] = dict(zip(self.placeholders, inputs, strict=True))
        yield from values.items()
        for node in self.nodes:
            found = self.node(node, lambda n, reader=node: seen(reader, n, values[n]))  # type: ignore[misc] # a default binds the reader
            values[node] = found = made(node, found)
            for source in node.all_input_nodes:
                if source in left:
                    left[source] -= 1
                    if not left[source]:
                        del values[source]
            yield node, found

    def stackable(self, one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
        """Whether two batches at once give, at every node, what each gives alone."""
        if any(x.dim() == 0 or x.shape[0] != self.first for x in one):
            return False
        both = [torch.cat(pair) for pair in zip(one, other, strict=True)]
        try:
            for (node, a), (_, b), (_, stacked) in zip(*map(self.walk, (one, other, both)), strict=True):
                if not isinstance(stacked, Tensor):
                    continue
                if stacked.dim() == 0 or stacked.shape[0] != 2 * self.first or a.shape[0] != self.first:
                    return False
                if node.op != "placeholder" and not torch.allclose(stacked, torch.cat((a, b)), rtol=1e-3, atol=1e-4):
                    return False
        except (RuntimeError, IndexError):  # a size that counts examples otherwise
            return False
        return True
