"""Step `equalise`: channels of one tensor are brought to like ranges by scaling weights, the function unchanged.

A channel behind ReLU divided by s, and the weights that read it multiplied by s, give the same network (Nagel et al. 2019,
Data-Free Quantization, arXiv 1906.04721, section 4.1). One scale per tensor then wastes less of its grid on small channels.
How much of the difference moves from activations into weights is SmoothQuant's exponent (Xiao et al. 2023, arXiv 2211.10438,
equation 4): s = r^α / w^(1−α) with r the channel's largest activation and w the largest weight that reads it, and α one half.
Ours: factors are followed through whatever moves, pools, joins or adds channels, so that a concat, a shortcut or a scatter
stands in the way of nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.bench import Bench
from edgeq.calib.floats import Floats
from edgeq.calib.needs import DATA
from edgeq.graph.annotate import Annotation
from edgeq.graph.capture import Captured
from edgeq.graph.kinds import role_of
from edgeq.graph.ops import constant, conv_attrs, data_inputs, kind_of, node_arg, set_constant, value
from edgeq.spec import Progress

ALPHA: Final = 0.5  # 1 helps PointPillars a little more at W8A4, and costs CenterPoint-Pillar two points there
LEAST: Final = 2.0**-6  # a channel that hardly lives counts as this share of its tensor's largest
POOLS: Final = frozenset(
    {"max_pool2d", "avg_pool2d", "upsample_nearest"}
)  # channels stay where they are before the last two axes
FIXED: Final = 0  # the channel whose factor is 1


@dataclass(frozen=True, slots=True)
class Equalise:
    """Channels are brought to like ranges before anything else is looked at."""

    needs: ClassVar[frozenset[str]] = frozenset({DATA})

    def run(self, bench: Bench) -> None:
        """Scale the weights of the captured network."""
        equalise(bench.captured, bench.annotation, bench.frames(), bench.progress)


@dataclass(frozen=True, slots=True)
class Lane:
    """Where a tensor's channels lie: `axis`, and for each position along it the channel's number, int64."""

    axis: int
    channels: Tensor


class Channels:
    """Every channel of a network that may be scaled, joined (union-find) where two must be scaled alike."""

    def __init__(self, captured: Captured) -> None:
        """Follow the graph once; nothing is changed."""
        self.parent = [FIXED]
        self.lanes: dict[Node, Lane] = {}
        graph = captured.module.graph
        for node in graph.nodes:
            if node.op == "call_function":
                lane = self._lane(node)
                if lane is not None:
                    self.lanes[node] = lane
            elif node.op == "output":
                self._stop(node)
        self._whole()

    def roots(self, lane: Lane) -> Tensor:
        """For each position along the lane's axis the number that stands for its channel, int64."""
        return torch.tensor([self._find(c) for c in lane.channels.tolist()], dtype=torch.long)

    def _find(self, channel: int) -> int:
        while self.parent[channel] != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def _join(self, a: Tensor, b: Tensor) -> None:
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            first, second = sorted((self._find(one), self._find(other)))
            self.parent[second] = first  # FIXED is the least, so it wins

    def _stop(self, node: Node) -> None:
        """What `node` reads keeps its size."""
        for source in node.all_input_nodes:
            lane = self.lanes.get(source)
            if lane is not None:
                self._join(lane.channels, torch.zeros_like(lane.channels))

    def _whole(self) -> None:
        """One fixed channel fixes its tensor: factors compare channels of one tensor with each other."""
        changed = True
        while changed:
            changed = False
            for lane in self.lanes.values():
                fixed = self.roots(lane) == FIXED
                if bool(fixed.any()) and not bool(fixed.all()):
                    self._join(lane.channels, torch.zeros_like(lane.channels))
                    changed = True

    def _new(self, count: int) -> Tensor:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def _lane(self, node: Node) -> Lane | None:
        """The lane of the node's value; None where its channels keep their size, and with them all that it reads."""
        found = self._followed(node)
        if found is None:
            self._stop(node)
        return found

    def _followed(self, node: Node) -> Lane | None:
        kind, source = kind_of(node), node.args[0] if node.args else None
        if not isinstance(node.meta.get("val"), Tensor):  # several results: chunk, split, unbind, max along an axis
            return None
        if kind is not None and role_of(kind) == "layer":
            return self._layer(node, kind)
        if kind == "cat":
            return self._cat(node)
        if kind in ("add", "sub"):
            one, other = (self.lanes.get(a) for a in data_inputs(node, kind))
            same = value(node.args[0]).shape == value(node.args[1]).shape
            if one is None or other is None or not same or one.axis != other.axis:
                return None
            self._join(one.channels, other.channels)
            return one
        lane = self.lanes.get(source) if isinstance(source, Node) else None
        if lane is None or not isinstance(source, Node):
            return None
        before, after = value(source).shape, value(node).shape
        if kind in POOLS or node.target is torch.ops.aten.adaptive_avg_pool2d.default:
            return lane if lane.axis < len(before) - 2 else None
        if kind == "relu" or (kind in ("pad", "gather") and before[lane.axis] == after[lane.axis]):
            return lane if kind != "gather" or lane.axis != 0 else None
        if kind == "mean":
            averaged = {int(a) % len(before) for a in node_arg(node, 1, None) or range(len(before))}
            gone = 0 if len(after) == len(before) else sum(a < lane.axis for a in averaged)
            return None if lane.axis in averaged else Lane(lane.axis - gone, lane.channels)
        if kind == "permute":
            order = list(range(len(before)))
            if node.target is torch.ops.aten.transpose.int:
                a, b = (int(d) % len(before) for d in node.args[1:3])  # type: ignore[arg-type] # ints
                order[a], order[b] = b, a
            else:
                order = [int(d) % len(before) for d in node.args[1]]  # type: ignore[union-attr,arg-type] # ints
            return Lane(order.index(lane.axis), lane.channels)
        return reshaped(lane, before, after) if kind == "reshape" else None

    def _layer(self, node: Node, kind: str) -> Lane | None:
        """A layer's output has channels of its own; what it reads must lie along the axis its weights take."""
        source = node.args[0]
        axes = [value(n).dim() - 1 if kind == "linear" else 1 for n in (source, node)]
        lane = self.lanes.get(source)  # type: ignore[arg-type] # a node
        grouped = kind == "conv_transpose2d" and conv_attrs(node, kind).groups != 1
        if grouped or not constants(node) or (lane is not None and lane.axis != axes[0]):
            return None
        return Lane(axes[1], self._new(value(node).shape[axes[1]]))

    def _cat(self, node: Node) -> Lane | None:
        sources = data_inputs(node, "cat")
        known = [self.lanes[s] for s in sources if s in self.lanes]
        at = int(node_arg(node, 1, 0)) % value(node).dim()
        if not known or any(lane.axis != known[0].axis for lane in known):
            return None
        if known[0].axis == at:
            parts = [
                self.lanes[s].channels if s in self.lanes else torch.full((value(s).shape[at],), FIXED) for s in sources
            ]
            return Lane(at, torch.cat(parts))
        if len(known) < len(sources):
            return None
        for lane in known[1:]:
            self._join(known[0].channels, lane.channels)
        return known[0]


def reshaped(lane: Lane, before: torch.Size, after: torch.Size) -> Lane | None:
    """The lane behind a reshape from `before` to `after`; None where an axis holds part of the channels only.

    An axis may take in its neighbours: each channel then stands there several times.
    """
    behind, count = before[lane.axis + 1 :].numel(), before[lane.axis]
    stride = 1
    for axis in reversed(range(len(after))):
        reach = stride * after[axis]  # values from one step of the axis before this one to the next
        if reach >= behind * count:
            if stride > behind or behind % stride or reach % (behind * count) or after[axis] == 1:
                return None
            inner, outer = behind // stride, reach // (behind * count)
            return Lane(axis, lane.channels.repeat_interleave(inner).repeat(outer))
        stride = reach
    return None


def constants(node: Node) -> bool:
    """Whether weight and bias are constants."""
    parts = [node.args[1], node_arg(node, 2, None)]
    return all(p is None or (isinstance(p, Node) and p.op == "get_attr") for p in parts)


def equalise(
    captured: Captured, annotation: Annotation, frames: Iterable[tuple[Tensor, ...]], progress: Progress
) -> int:
    """Scale the weights in the graph of `captured` by what `frames` of its inputs do; returns how many channels moved.

    Of a graph that calibration borrows (edgeq.calib.lent).

    The network's answers stay as they were up to float rounding, and the module it was captured from keeps its weights.
    """
    channels = Channels(captured)
    if len(channels.parent) == 1:
        return 0
    roots = {n: channels.roots(lane) for n, lane in channels.lanes.items()}
    activation, weight = torch.zeros(len(channels.parent)), torch.zeros(len(channels.parent))
    largest = torch.zeros(2, len(channels.parent))
    tensors, floats = annotation.tensors, Floats(captured)
    with torch.no_grad():
        for index, frame in enumerate(frames):
            for node, seen in floats.walk(frame):
                if node in roots and node in tensors.parent:
                    others = [a for a in range(seen.dim()) if a != channels.lanes[node].axis]
                    sizes = seen.abs().amax(others) if others else seen.abs()  # amax(()) would be one number
                    activation.scatter_reduce_(0, roots[node], sizes, "amax")
            progress("equalise channels", index + 1, len(frames) if isinstance(frames, Sized) else None)
    for group in annotation.groups:
        if role_of(group.kind) == "layer" and group.inputs[0] in roots:
            weight.scatter_reduce_(0, roots[group.inputs[0]], columns(captured, group.node), "amax")
    for found in roots.values():
        for side, sizes in enumerate((activation, weight)):
            largest[side].scatter_reduce_(0, found, sizes[found].max().expand(len(found)), "amax")
    known = (activation > 0) & (weight > 0)
    activation, weight = (torch.maximum(v, LEAST * top) for v, top in zip((activation, weight), largest, strict=True))
    factors = torch.where(known, activation**ALPHA / weight ** (1 - ALPHA), 1.0)
    factors[FIXED] = 1.0
    for node in captured.module.graph.nodes:
        if role_of(kind_of(node)) == "layer":
            into, out = (factors[roots[n]] if n in roots else None for n in (node.args[0], node))
            if any(f is not None and bool((f != 1.0).any()) for f in (into, out)):
                scale(captured, node, into, out)
    captured.module.recompile()
    return int((factors != 1.0).sum())


def columns(captured: Captured, node: Node) -> Tensor:
    """Largest weight that reads each input channel, float32 [C_in]."""
    weight = constant(captured.module, node.args[1]).abs()  # type: ignore[arg-type] # a constant
    kind = kind_of(node) or ""
    if kind == "linear":
        return weight.amax(0)
    if kind == "conv_transpose2d":
        return weight.flatten(1).amax(1)
    groups = conv_attrs(node, kind).groups
    return weight.flatten(2).amax(2).view(groups, -1, weight.shape[1]).amax(1).flatten()


def scale(captured: Captured, node: Node, into: Tensor | None, out: Tensor | None) -> None:
    """Multiply a layer's weights by the factors `into` [C_in] of what it reads, divide them and its bias by `out` [C_out]."""
    module, kind = captured.module, kind_of(node) or ""
    weight = constant(module, node.args[1]).double()  # type: ignore[arg-type] # a constant
    spatial = [1] * (weight.dim() - 2)
    if kind == "conv_transpose2d":
        rows, inputs = (1, -1, *spatial), (-1, 1, *spatial)
    else:
        rows, inputs = (-1, 1, *spatial), (1, -1, *spatial)
    if into is not None and kind not in ("linear", "conv_transpose2d"):
        groups = conv_attrs(node, kind).groups
        weight = (weight.view(groups, -1, *weight.shape[1:]) * into.double().view(groups, 1, -1, *spatial)).flatten(
            0, 1
        )
    elif into is not None:
        weight = weight * into.double().view(inputs)
    weight = weight if out is None else weight / out.double().view(rows)
    args, bias = list(node.args), node_arg(node, 2, None)
    with module.graph.inserting_before(node):
        args[1] = set_constant(module, f"{node.name}_weight", weight)
        if isinstance(bias, Node) and out is not None:
            args[2] = set_constant(module, f"{node.name}_bias", constant(module, bias).double() / out.double())
    node.args = tuple(args)
