"""Indices counted from an axis's end become counted from its start: TVM's take reads in front of the tensor there."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from edgeq.graph.ops import value

aten = torch.ops.aten


def from_start(graph: Graph) -> None:
    """Rewrite select, narrow and index in place so that no index is negative; they pick what they picked.

    narrow becomes a slice: the importer takes its length for its end.
    """
    for node in list(graph.nodes):
        if node.target is aten.select.int:
            source, axis, index = node.args
            node.args = (source, axis, index % value(source).shape[axis])
        elif node.target is aten.narrow.default:
            source, axis, start, length = node.args
            first = start % value(source).shape[axis] if start < 0 else start
            node.target, node.args = aten.slice.Tensor, (source, axis, first, first + length)
        elif node.target is aten.index.Tensor:
            sizes = value(node.args[0]).shape
            places = [_wrapped(graph, node, place, sizes[axis]) for axis, place in enumerate(node.args[1])]
            node.args = (node.args[0], places)


def _wrapped(graph: Graph, before: Node, place: Node | None, size: int) -> Node | None:
    """A tensor of indices modulo `size`; masks stay."""
    if place is None or value(place).dtype in (torch.bool, torch.uint8):
        return place
    with graph.inserting_before(before):
        made = graph.call_function(aten.remainder.Scalar, (place, size))
    made.meta["val"] = value(place)
    return made
