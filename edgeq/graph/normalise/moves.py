"""Operators that only move values, in the few that every runtime has for integers: slice, cat, reshape, permute."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeq.graph.ops import constant, node_arg, value

aten = torch.ops.aten

AXES: Final = 5  # what all runtimes have tensors of
PIECES: Final = 16  # slices of one tensor that are still cheaper side by side than a float operator between integers


class _Draft:
    """Operators written in the place of `node`, which carry its place in the user's module."""

    def __init__(self, module: GraphModule, node: Node) -> None:
        self.module, self.node = module, node

    def call(self, target: Any, *args: Any) -> Node:
        with self.module.graph.inserting_before(self.node):
            made = self.module.graph.call_function(target, args)
        made.meta = {**self.node.meta, "val": target(*torch.fx.map_arg(args, lambda n: n.meta["val"]))}
        return made

    def cut(self, x: Node, axis: int, start: int, end: int) -> Node:
        """x[start:end] along an axis; x itself where that is all of it."""
        return x if (start, end) == (0, value(x).shape[axis]) else self.call(aten.slice.Tensor, x, axis, start, end)

    def joined(self, parts: Sequence[Node], axis: int) -> Node:
        return parts[0] if len(parts) == 1 else self.call(aten.cat.default, list(parts), axis)

    def shaped(self, x: Node, shape: Sequence[int]) -> Node:
        wanted = [int(n) for n in shape]
        return x if list(value(x).shape) == wanted else self.call(aten.reshape.default, x, wanted)

    def picked(self, x: Node, axis: int, places: Sequence[int]) -> Node | None:
        """The values of x at `places` along an axis, as slices side by side; None where these are too many."""
        runs: list[list[int]] = []
        for place in places:
            if runs and place == runs[-1][1]:
                runs[-1][1] += 1
            else:
                runs.append([place, place + 1])
        if not 0 < len(runs) <= PIECES:
            return None
        return self.joined([self.cut(x, axis, start, end) for start, end in runs], axis)


def spell_out_moves(module: GraphModule, node: Node) -> None:
    """Rewrite one node of `module`, where it moves floats and the pieces are few; else leave it as it is."""
    rewrite = SINGLE.get(node.target)
    source = node.args[0] if node.args else None
    if isinstance(source, (list, tuple)):
        source = source[0]
    if not isinstance(source, Node) or not isinstance(source.meta.get("val"), Tensor) or value(source).dim() == 0:
        return
    if not value(source).is_floating_point():
        return
    if node.target in SEVERAL:
        _parts(module, node, source)
    elif node.target is aten.adaptive_max_pool2d.default:
        _adaptive_largest(module, node, source)
    elif rewrite is not None and isinstance(node.meta.get("val"), Tensor) and value(node).numel():
        made = rewrite(_Draft(module, node), node, source)
        if made is not None:
            node.replace_all_uses_with(made)
            module.graph.erase_node(node)


def _parts(module: GraphModule, node: Node, source: Node) -> None:
    """chunk, split, unbind: each result that somebody reads is a slice."""
    axis = node_arg(node, 1 if node.target is aten.unbind.int else 2, node.kwargs.get("dim", 0)) % value(source).dim()
    start = 0
    readers = {user.args[1]: user for user in node.users if user.target is operator.getitem}
    if len(readers) != len(node.users):
        return
    for index, part in enumerate(node.meta["val"]):
        size = 1 if node.target is aten.unbind.int else part.shape[axis]
        if (reader := readers.get(index)) is not None:
            draft = _Draft(module, reader)
            made = draft.shaped(draft.cut(source, axis, start, start + size), part.shape)
            reader.replace_all_uses_with(made)
            module.graph.erase_node(reader)
        start += size
    if not node.users:
        module.graph.erase_node(node)


def _narrow(draft: _Draft, node: Node, x: Node) -> Node | None:
    axis, start, length = node.args[1:4]
    axis = int(axis) % value(x).dim()  # type: ignore[arg-type] # a number
    if not isinstance(start, int) or not isinstance(length, int):
        return None
    start %= value(x).shape[axis]
    return draft.cut(x, axis, start, start + length)


def _select(draft: _Draft, node: Node, x: Node) -> Node | None:
    axis, index = (int(a) for a in node.args[1:3])  # type: ignore[arg-type] # numbers
    axis %= value(x).dim()
    index %= value(x).shape[axis]
    return draft.shaped(draft.cut(x, axis, index, index + 1), value(node).shape)


def _stack(draft: _Draft, node: Node, x: Node) -> Node | None:
    parts: list[Node] = list(node.args[0])  # type: ignore[arg-type] # stack takes a list
    axis = node_arg(node, 1, node.kwargs.get("dim", 0)) % value(node).dim()
    shape = [*value(x).shape[:axis], 1, *value(x).shape[axis:]]
    return draft.joined([draft.shaped(part, shape) for part in parts], axis)


def _roll(draft: _Draft, node: Node, x: Node) -> Node | None:
    shifts, axes = node.args[1], node_arg(node, 2, [])
    pairs = list(zip(_several(shifts), _several(axes), strict=False))
    if not pairs:
        return None
    for shift, axis in pairs:
        size = value(x).shape[axis]
        back = size - shift % size
        if back != size:
            x = draft.joined([draft.cut(x, axis, back, size), draft.cut(x, axis, 0, back)], axis % value(x).dim())
    return x


def _flip(draft: _Draft, node: Node, x: Node) -> Node | None:
    axes = [a % value(x).dim() for a in _several(node.args[1])]
    if any(value(x).shape[a] > PIECES for a in axes):
        return None
    for axis in axes:
        found = draft.picked(x, axis, range(value(x).shape[axis] - 1, -1, -1))
        assert found is not None
        x = found
    return x


def _repeat(draft: _Draft, node: Node, x: Node) -> Node | None:
    times = _several(node.args[1])
    rank = max(len(times), value(x).dim())
    times = [1] * (rank - len(times)) + times
    shape = [1] * (rank - value(x).dim()) + list(value(x).shape)
    return _copied(draft, draft.shaped(x, shape), times)


def _expand(draft: _Draft, node: Node, x: Node) -> Node | None:
    wide = list(value(node).shape)
    shape = [1] * (len(wide) - value(x).dim()) + list(value(x).shape)
    if all(_broadcasts(user, node, shape) for user in node.users):
        return draft.shaped(x, shape)
    return _copied(draft, draft.shaped(x, shape), [w // s for w, s in zip(wide, shape, strict=True)])


def _broadcasts(user: Node, node: Node, shape: Sequence[int]) -> bool:
    """Whether a reader of `node` makes as much of it by itself where it has `shape`."""
    if user.target not in PAIRS or user.args.count(node) != 1:
        return False
    (other,) = (a for a in user.args[:2] if a is not node)
    if not isinstance(other, Node):
        return False
    together: Tensor = torch.empty(tuple(value(other).shape), device="meta") + torch.empty(tuple(shape), device="meta")
    return together.shape == value(user).shape


def _copied(draft: _Draft, x: Node, times: Sequence[int]) -> Node | None:
    """x as many times along each axis."""
    if max(times) > PIECES:
        return None
    for axis, count in enumerate(times):
        x = draft.joined([x] * count, axis)
    return x


def _repeat_interleave(draft: _Draft, node: Node, x: Node) -> Node | None:
    times, axis = node.args[1], node_arg(node, 2, node.kwargs.get("dim"))
    if not isinstance(times, int) or axis is None or times > PIECES:
        return None
    axis %= value(x).dim()
    shape = list(value(x).shape)
    apart = draft.shaped(x, [*shape[: axis + 1], 1, *shape[axis + 1 :]])
    return draft.shaped(draft.joined([apart] * times, axis + 1), value(node).shape)


def _channel_shuffle(draft: _Draft, node: Node, x: Node) -> Node | None:
    (count, channels, *rest), groups = value(x).shape, int(node.args[1])  # type: ignore[arg-type] # a number
    apart = draft.shaped(x, [count, groups, channels // groups, *rest])
    order = [0, 2, 1, *range(3, 3 + len(rest))]
    return draft.shaped(draft.call(aten.permute.default, apart, order), value(node).shape)


def _index(draft: _Draft, node: Node, x: Node) -> Node | None:
    """x[:, [3, 1, 2]]: what a constant list picks along one axis."""
    given = node.args[1] if node.target is aten.index.Tensor else [None] * node.args[1] + [node.args[2]]  # type: ignore[operator] # index_select's axis
    (axis, places), *others = [(axis, i) for axis, i in enumerate(given) if i is not None]  # type: ignore[arg-type] # a list
    if others or not isinstance(places, Node) or places.op != "get_attr":
        return None
    held = constant(draft.module, places)
    if held.dim() != 1 or held.dtype not in (torch.int64, torch.int32):
        return None
    size = value(x).shape[axis]
    return draft.picked(x, axis, [int(i) % size for i in held])


def _pad(draft: _Draft, node: Node, x: Node) -> Node | None:
    """Reflected, repeated or circular padding: slices of x beside it."""
    mode = node_arg(node, 2, "constant") if node.target is aten.pad.default else PADS[node.target]
    amounts = _several(node.args[1])
    if mode == "constant" or min(amounts) < 0:
        return None
    before = x
    for at in range(0, len(amounts), 2):
        front, behind = amounts[at : at + 2]
        axis = value(before).dim() - 1 - at // 2
        size = value(x).shape[axis]
        found = draft.picked(x, axis, [_within(i, size, mode) for i in range(-front, size + behind)])
        if found is None:
            return None
        x = found
    return x


def _within(place: int, size: int, mode: str) -> int:
    """Which value stands at a place beside an axis."""
    if mode == "circular":
        return place % size
    if mode == "replicate":
        return min(max(place, 0), size - 1)
    return abs(place) if place < size else 2 * (size - 1) - place


def _largest(draft: _Draft, node: Node, x: Node) -> Node | None:
    """The largest value of each channel of an image as a pool over all of it."""
    axes = sorted(a % value(x).dim() for a in _several(node_arg(node, 1, [])))
    if value(x).dim() != 4 or axes != [2, 3] or list(value(x).shape[2:]) == [1, 1]:
        return None
    window = list(value(x).shape[2:])
    return draft.shaped(draft.call(aten.max_pool2d.default, x, window, window), value(node).shape)


def _adaptive_largest(module: GraphModule, node: Node, x: Node) -> None:
    """An adaptive maximum whose windows are all of one size, where nobody asks for the places that it came from."""
    after = list(value(x).shape[-2:]), _several(node.args[1])
    readers = list(node.users)
    if (
        value(x).dim() != 4
        or any(user.args[1] != 0 for user in readers)
        or any(b % a for b, a in zip(*after, strict=True))
    ):
        return
    window = [b // a for b, a in zip(*after, strict=True)]
    for reader in readers:
        made = x if window == [1, 1] else _Draft(module, reader).call(aten.max_pool2d.default, x, window, window)
        reader.replace_all_uses_with(made)
        module.graph.erase_node(reader)
    module.graph.erase_node(node)


def _adaptive(draft: _Draft, node: Node, x: Node) -> Node | None:
    """An adaptive average whose windows are all of one size is a plain one; to one value it is a mean, as it stands."""
    before, after = list(value(x).shape[-2:]), _several(node.args[1])
    if value(x).dim() != 4 or after == [1, 1] or any(b % a for b, a in zip(before, after, strict=True)):
        return None
    window = [b // a for b, a in zip(before, after, strict=True)]
    return x if window == [1, 1] else draft.call(aten.avg_pool2d.default, x, window, window)


def _pool(draft: _Draft, node: Node, x: Node) -> Node | None:
    """A pool of one or three axes as pools of two, over height and width, then over depth; to one value it is a mean.

    None where its windows are of unlike sizes, or divide by unlike counts.
    """
    name, axes = str(node.target), 1 if "1d" in str(node.target) else 3
    shape = list(value(x).shape)
    batch, channels = ([1, *shape][-axes - 2 :])[:2]
    depth, height, width = [1, 1, *shape[-axes:]][-3:]

    def each(given: Any, alone: int) -> list[int]:
        return [alone] * (3 - axes) + (_several(given) * axes)[:axes]

    if "adaptive" in name:
        after = [1, 1, *value(node).shape[-axes:]][-3:]
        if after == [1, 1, 1]:
            flat = draft.shaped(x, [batch, channels, depth, height * width])
            return draft.shaped(draft.call(aten.mean.dim, flat, [2, 3], True), value(node).shape)
        if any(b % a for b, a in zip((depth, height, width), after, strict=True)):
            return None
        window = stride = [b // a for b, a in zip((depth, height, width), after, strict=True)]
        padding, behind = [0, 0, 0], []
    else:
        window, padding = each(node.args[1], 1), each(node_arg(node, 3, 0), 0)
        stride = each(node_arg(node, 2, None) or node.args[1], 1)
        behind = [each(node_arg(node, 4, 1), 1), node_arg(node, 5, False)] if "max" in name else []
        unlike = node_arg(node, 4, False) or (any(padding) and not node_arg(node, 5, True)) or node_arg(node, 6, None)
        if not behind and unlike:
            return None
    pool = aten.max_pool2d.default if "max" in name else aten.avg_pool2d.default
    for lead, at in (([batch, channels * depth, height, width], (1, 2)), ([batch, channels, depth, -1], (0,))):
        if any(window[i] != 1 or stride[i] != 1 for i in at):
            sizes = [
                ([numbers[i] for i in at] + [alone])[:2] for numbers, alone in ((window, 1), (stride, 1), (padding, 0))
            ]
            more = [([behind[0][i] for i in at] + [1])[:2], behind[1]] if behind else []
            lead[-1] = lead[-1] if lead[-1] > 0 else value(x).numel() // math.prod(lead[:-1])
            x = draft.call(pool, draft.shaped(x, lead), *sizes, *more)
    return draft.shaped(x, value(node).shape)


def fewer_axes(module: GraphModule, node: Node) -> None:
    """A permute of more than five axes without those of size 1, and with neighbours that stay neighbours as one.

    Core ML has no tensors of six axes, and XNNPACK none of seven.
    """
    x, given = node.args[0], value(node.args[0]).shape
    if not isinstance(x, Node) or len(given) <= AXES:
        return
    order = [a % len(given) for a in _several(node.args[1])]
    wide = [a for a in order if given[a] != 1]
    rank = {a: i for i, a in enumerate(sorted(wide))}
    runs: list[list[int]] = []
    for axis in wide:
        if runs and rank[axis] == rank[runs[-1][-1]] + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    sizes = {run[0]: math.prod(given[a] for a in run) for run in runs}
    firsts = sorted(sizes)
    if not 0 < len(runs) <= AXES:
        return
    draft = _Draft(module, node)
    narrow = draft.shaped(x, [sizes[a] for a in firsts])
    turned = [firsts.index(run[0]) for run in runs]
    moved = narrow if turned == sorted(turned) else draft.call(aten.permute.default, narrow, turned)
    node.replace_all_uses_with(draft.shaped(moved, value(node).shape))
    module.graph.erase_node(node)


def join_reshapes(node: Node) -> None:
    """A reshape of a reshape is the last of them; nothing where it leads back to the first shape."""
    while isinstance(inner := node.args[0], Node) and inner.target is aten.reshape.default:
        node.args = (inner.args[0], list(value(node).shape))
    if isinstance(inner, Node) and value(inner).shape == value(node).shape:
        node.replace_all_uses_with(inner)


def spell_out_steps(module: GraphModule, node: Node) -> None:
    """x[..., start::step] as a reshape into steps and a slice of one of each, with zeros behind where the last is not whole."""
    x, step = node.args[0], node_arg(node, 4, 1)
    if not isinstance(x, Node) or step == 1 or not value(x).is_floating_point() or not value(node).numel():
        return
    draft, shape = _Draft(module, node), list(value(x).shape)
    axis = node_arg(node, 1, 0) % len(shape)
    start, _, _ = slice(node_arg(node, 2, None), None).indices(shape[axis])
    count = value(node).shape[axis]
    x = draft.cut(x, axis, start, min(start + count * step, shape[axis]))
    if (lacking := count * step - value(x).shape[axis]) > 0:
        amounts = [0, 0] * (len(shape) - 1 - axis) + [0, lacking]
        x = draft.call(aten.constant_pad_nd.default, x, amounts)
    x = draft.shaped(x, [*shape[:axis], count, step, *shape[axis + 1 :]])
    made = draft.shaped(draft.cut(x, axis + 1, 0, 1), value(node).shape)
    node.replace_all_uses_with(made)
    module.graph.erase_node(node)


def _several(raw: Any) -> list[int]:
    return [int(i) for i in raw] if isinstance(raw, (list, tuple)) else [int(raw)]


PAIRS: Final = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
SEVERAL: Final = (
    aten.chunk.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
    aten.unbind.int,
)
PADS: Final[dict[Any, str]] = {
    **dict.fromkeys((aten.reflection_pad1d.default, aten.reflection_pad2d.default), "reflect"),
    **dict.fromkeys((aten.replication_pad1d.default, aten.replication_pad2d.default), "replicate"),
}
POOLS: Final = (
    aten.max_pool1d.default,
    aten.avg_pool1d.default,
    aten.adaptive_avg_pool1d.default,
    aten.max_pool3d.default,
    aten.avg_pool3d.default,
    aten.adaptive_avg_pool3d.default,
)
SINGLE: Final[dict[Any, Callable[[_Draft, Node, Node], Node | None]]] = {
    aten.narrow.default: _narrow,
    aten.select.int: _select,
    aten.stack.default: _stack,
    aten.roll.default: _roll,
    aten.flip.default: _flip,
    aten.repeat.default: _repeat,
    aten.tile.default: _repeat,
    aten.expand.default: _expand,
    aten.expand_as.default: _expand,
    aten.broadcast_to.default: _expand,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.index.Tensor: _index,
    aten.index_select.default: _index,
    aten.pad.default: _pad,
    **dict.fromkeys(PADS, _pad),
    aten.amax.default: _largest,
    aten.adaptive_avg_pool2d.default: _adaptive,
    **dict.fromkeys(POOLS, _pool),
}
