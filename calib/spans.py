"""Spans: which layers are reconstructed together, in forward order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from torch.fx import Node

from edgeq.calib.twins import Numbers

MOST_LAYERS: Final = 4  # a block with more is taken layer by layer
MOST_ACROSS: Final = 2 * MOST_LAYERS


@dataclass(frozen=True, slots=True)
class Span:
    """Nodes that are computed one after the other without a look outside, and the weighted ones among them."""

    name: str
    nodes: tuple[Node, ...]
    layers: tuple[Node, ...]


def spans(numbers: Numbers, extent: Literal["layer", "block", "cross-block"]) -> list[Span]:
    """The network's spans in forward order; nodes without weights lie in a span or between two.

    A layer comes with its fused activation. A block is what lies between two places where a single tensor carries
    everything (Li et al. 2021, BRECQ, arXiv 2102.05426, section 3.2, where a person names the blocks); one with more than
    MOST_LAYERS layers falls apart into its layers. `cross-block` joins neighbouring blocks in pairs.
    """
    if extent == "layer":
        return _layers(numbers, _calls(numbers))
    found: list[Span] = []
    for segment in _segments(_calls(numbers)):
        inside = [n for n in segment if n in numbers.weighted]
        if 1 < len(inside) <= MOST_LAYERS:
            found.append(_span(numbers, segment, inside))
        else:
            found += _layers(numbers, segment)
    return found if extent == "block" else _paired(numbers, found)


def _calls(numbers: Numbers) -> list[Node]:
    return [n for n in numbers.captured.module.graph.nodes if n.op == "call_function"]


def _span(numbers: Numbers, nodes: list[Node], layers: list[Node]) -> Span:
    keys = [numbers.weighted[n][0] for n in layers]
    return Span(keys[0] if len(keys) == 1 else f"{keys[0]} … {keys[-1]}", tuple(nodes), tuple(layers))


def _layers(numbers: Numbers, nodes: list[Node]) -> list[Span]:
    """One span for each weighted node among `nodes`."""
    found = []
    for node in nodes:
        if node in numbers.weighted:
            group = numbers.groups.get(node)
            output = group.output if group is not None else node
            found.append(_span(numbers, [node] if output is node else [node, output], [node]))
    return found


def _segments(calls: list[Node]) -> list[list[Node]]:
    """`calls` cut wherever one tensor alone is still to be read by a later node."""
    place = {n: i for i, n in enumerate(calls)}
    last = {n: max((place[u] for u in n.users if u in place), default=-1) for n in calls}
    sources = {i for n in calls for i in n.all_input_nodes if i.op == "placeholder"}
    last |= {s: max(place[u] for u in s.users if u in place) for s in sources}
    found: list[list[Node]] = [[]]
    live = {s for s in sources}
    for index, node in enumerate(calls):
        found[-1].append(node)
        live = {n for n in (*live, node) if last[n] > index}
        if len(live) <= 1:
            found.append([])
    return [segment for segment in found if segment]


def _paired(numbers: Numbers, blocks: list[Span]) -> list[Span]:
    """Neighbours joined two by two where nothing lies between them that they need, nor too many layers in them."""
    found: list[Span] = []
    calls = _calls(numbers)
    for span in blocks:
        before = found[-1] if found else None
        if before is not None and len(before.layers) > 1 and len(span.layers) > 1 and " + " not in before.name:
            both = len(before.layers) + len(span.layers)
            if both <= MOST_ACROSS:
                low, high = calls.index(before.nodes[0]), calls.index(span.nodes[-1])
                found[-1] = Span(
                    f"{before.name} + {span.name}", tuple(calls[low : high + 1]), (*before.layers, *span.layers)
                )
                continue
        found.append(span)
    return found
