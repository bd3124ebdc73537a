"""Operators said as the kernels that runtimes have: padding inside the convolution, a batch axis, moves for pixel shuffle and
windows."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgeq.graph.ops import conv_attrs, kind_of, node_arg, set_constant, value

aten = torch.ops.aten

# operators that torch takes without a batch axis, and the axes they have with one
BATCHED: dict[Any, int] = {
    aten.conv1d.default: 3,
    aten.conv1d.padding: 3,
    aten.conv2d.padding: 4,
    aten.conv2d.default: 4,
    aten.conv3d.default: 5,
    aten.conv_transpose1d.default: 3,
    aten.conv_transpose2d.input: 4,
    aten.conv_transpose3d.input: 5,
    aten.max_pool1d.default: 3,
    aten.avg_pool1d.default: 3,
    aten.max_pool2d.default: 4,
    aten.avg_pool2d.default: 4,
    aten.adaptive_avg_pool2d.default: 4,
    aten.adaptive_max_pool2d.default: 4,
}


def add_batch_axis(module: GraphModule, node: Node) -> None:
    """An operator on a tensor without a batch axis gets one of size 1, and loses it behind: kernels insist on it."""
    source = node.args[0]
    assert isinstance(source, Node)
    if value(source).dim() != BATCHED[node.target] - 1 or not isinstance(node.meta["val"], torch.Tensor):
        return
    batched = value(source).unsqueeze(0)
    with module.graph.inserting_before(node):
        before = module.graph.call_function(aten.unsqueeze.default, (source, 0))
    before.meta = {**node.meta, "val": batched}
    node.args = (before, *node.args[1:])
    with module.graph.inserting_after(node):
        after = module.graph.call_function(aten.squeeze.dim, (node, 0))
    after.meta = dict(node.meta)
    node.meta = {**node.meta, "val": value(node).unsqueeze(0)}
    node.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)


def explicit_padding(node: Node) -> None:
    """padding="same" or "valid" as numbers, where both sides get the same."""
    two = node.target is aten.conv2d.padding
    weight = value(node.args[1])
    mode = node_arg(node, 4, "valid")
    kernel = weight.shape[2:]
    dilation = list(node_arg(node, 5, [1] * len(kernel)))
    dilation = dilation * len(kernel) if len(dilation) == 1 else dilation
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)] if mode == "same" else [0] * len(kernel)
    if any(t % 2 for t in total):
        return
    stride = node_arg(node, 3, [1] * len(kernel))
    bias = node_arg(node, 2, None)
    node.args = (node.args[0], node.args[1], bias, stride, [t // 2 for t in total], dilation, node_arg(node, 6, 1))
    node.target = aten.conv2d.default if two else aten.conv1d.default


def drop_idle_ceiling(node: Node) -> None:
    """A pool's ceil_mode goes where its windows fill the tensor anyway, as those of residual shortcuts do; its stride is said."""
    if len(node.args) == 2:  # the stride is the window where it is left out
        node.args = (*node.args, node.args[1])
    at = 4 if node.target is aten.avg_pool2d.default else 5
    if node_arg(node, at, False) and len(node.args) > at:
        floor = (*node.args[:at], False, *node.args[at + 1 :])
        if node.target(value(node.args[0]), *floor[1:]).shape == value(node).shape:  # type: ignore[operator] # an overload
            node.args = floor


def spell_out_similarity(module: GraphModule, node: Node) -> None:
    """Cosine similarity and distances by pairs as norms, products and sums: no importer but LiteRT's knows them by name."""
    first, second = node.args[:2]
    assert isinstance(first, Node) and isinstance(second, Node)
    cosine = node.target is aten.cosine_similarity.default
    axis = node_arg(node, 2, 1) if cosine else -1
    if value(first).dim() != value(second).dim() or value(first).shape[axis] != value(second).shape[axis]:
        return  # torch broadcasts before it measures

    def call(target: Any, *args: Any) -> Node:
        made: Node = module.graph.call_function(target, args)
        made.meta = {**node.meta, "val": target(*torch.fx.map_arg(args, value))}
        return made

    def unit(x: Node) -> Node:
        length = call(aten.linalg_vector_norm.default, x, 2, [axis], True)
        return call(aten.div.Tensor, x, call(aten.clamp_min.default, length, node_arg(node, 3, 1e-8)))

    with module.graph.inserting_before(node):
        if cosine:
            result = call(aten.sum.dim_IntList, call(aten.mul.Tensor, unit(first), unit(second)), [axis])
        else:
            apart = call(aten.add.Tensor, call(aten.sub.Tensor, first, second), node_arg(node, 3, 1e-6))
            order, kept = node_arg(node, 2, 2), node_arg(node, 4, False)
            result = call(aten.linalg_vector_norm.default, apart, order, [axis], kept)
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)


def spell_out_pixel_shuffle(module: GraphModule, node: Node) -> None:
    """Pixel shuffle or unshuffle [N, C, H, W] as reshape, permute, reshape of five axes: all runtimes move integers so."""
    source, factor = node.args
    assert isinstance(source, Node) and isinstance(factor, int)
    if value(source).dim() != 4:
        return
    (count, channels, height, width), shape = value(source).shape, list(value(node).shape)
    if node.target is aten.pixel_shuffle.default:
        apart, order = [count * channels // factor**2, factor, factor, height, width], [0, 3, 1, 4, 2]
    else:
        apart, order = [count * channels, height // factor, factor, width // factor, factor], [0, 2, 4, 1, 3]
    result, moved = source, value(source)
    with module.graph.inserting_before(node):
        for target, argument in (
            (aten.reshape.default, apart),
            (aten.permute.default, order),
            (aten.reshape.default, shape),
        ):
            result, moved = module.graph.call_function(target, (result, argument)), target(moved, argument)
            result.meta = {**node.meta, "val": moved}
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)


def crop_before_padding(module: GraphModule, node: Node) -> None:
    """Padding by a negative amount is a slice, which every runtime has; what pads up stays with a pad behind it."""
    source, amounts = node.args[0], list(node.args[1])  # type: ignore[arg-type] # ints: last axis first, two an axis
    mode, rank = node_arg(node, 2, "constant"), value(source).dim()
    if all(a >= 0 for a in amounts) or (isinstance(mode, str) and mode != "constant"):
        return
    for at in range(0, len(amounts), 2):
        front, behind = amounts[at : at + 2]
        if min(front, behind) >= 0:
            continue
        axis = rank - 1 - at // 2
        span = (max(-front, 0), value(source).shape[axis] + min(behind, 0))
        with module.graph.inserting_before(node):
            cut = module.graph.call_function(aten.slice.Tensor, (source, axis, *span))
        cut.meta = {**node.meta, "val": aten.slice.Tensor(value(source), axis, *span)}
        source = cut
    kept = [max(a, 0) for a in amounts]
    if any(kept):
        node.args = (source, kept, *node.args[2:])
    else:
        node.replace_all_uses_with(source)  # type: ignore[arg-type] # the last slice
        module.graph.erase_node(node)


def spell_out_windows(module: GraphModule, node: Node) -> None:
    """Tensor.unfold, as a transformer cuts a series into patches: slices side by side, reshape, permute.

    Windows that neither overlap nor leave gaps are one slice.
    """
    source, axis, size, step = node.args
    assert isinstance(source, Node) and isinstance(axis, int) and isinstance(size, int) and isinstance(step, int)
    given, shape = value(source), list(value(node).shape)
    if given.dim() == 0:
        return
    axis %= given.dim()
    count = shape[axis]
    spans = [(0, count * size)] if step == size else [(i * step, i * step + size) for i in range(count)]

    def call(target: Any, first: Any, second: Any, *more: int) -> Node:
        made = module.graph.call_function(target, (first, second, *more))
        kept = torch.fx.map_arg(made.args, lambda n: value(n))
        made.meta = {**node.meta, "val": target(*kept)}
        return made

    with module.graph.inserting_before(node):
        parts = [call(aten.slice.Tensor, source, axis, *span) for span in spans]
        result = parts[0] if len(parts) == 1 else call(aten.cat.default, parts, axis)
        result = call(aten.reshape.default, result, [*shape[:axis], count, size, *shape[axis + 1 : -1]])
        order = [a for a in range(len(shape)) if a != axis + 1]
        result = call(aten.permute.default, result, [*order, axis + 1])
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)


def repeat_shared_heads(module: GraphModule, node: Node) -> None:
    """An attention whose groups of queries share a key and a value reads these as often as it has queries."""
    if not node.kwargs.get("enable_gqa"):
        return
    query, *shared = node.args[:3]
    assert isinstance(query, Node)
    repeated = []
    for source in shared:
        assert isinstance(source, Node)
        *before, heads, length, width = value(source).shape
        times = value(query).shape[-3] // heads
        with module.graph.inserting_before(node):
            for target, second in (
                (aten.reshape.default, [*before, heads, 1, length, width]),
                (aten.cat.default, len(before) + 1),
                (aten.reshape.default, [*before, heads * times, length, width]),
            ):
                first = [source] * times if target is aten.cat.default else source
                source = module.graph.call_function(target, (first, second))
                args = torch.fx.map_arg(source.args, lambda n: value(n))
                source.meta = {**node.meta, "val": target(*args)}
        repeated.append(source)
    node.args = (query, *repeated, *node.args[3:])
    node.kwargs = {name: given for name, given in node.kwargs.items() if name != "enable_gqa"}


def pad_into_convolution(module: GraphModule, pad: Node) -> None:
    """Zero padding that is the same on both sides moves into the convolutions that read it."""
    amounts = list(pad.args[1])  # type: ignore[arg-type] # a list of ints: last axis first, two numbers an axis
    sides = [tuple(amounts[i : i + 2]) for i in range(0, len(amounts), 2)][::-1]
    users = list(pad.users)
    kinds = [kind_of(u) for u in users]
    if len(sides) + 2 != value(pad).dim() or any(a != b or a < 0 for a, b in sides):
        return
    convolutions = ("conv1d", "conv2d", "depthwise_conv2d")
    if not users or any(k not in convolutions or u.args[0] is not pad for k, u in zip(kinds, users, strict=True)):
        return
    for user, kind in zip(users, kinds, strict=True):
        attrs = conv_attrs(user, kind or "")
        padding = [p + side[0] for p, side in zip(attrs.padding, sides, strict=True)]
        bias = node_arg(user, 2, None)
        user.args = (pad.args[0], user.args[1], bias, list(attrs.stride), padding, list(attrs.dilation), attrs.groups)
    module.graph.erase_node(pad)


def subsample_as_convolution(module: GraphModule, node: Node) -> None:
    """x[:, :, a::s, b::t] as a 1×1 depthwise convolution of ones with that stride: every runtime has an integer kernel for it."""
    inner = node.args[0]
    if not isinstance(inner, Node) or inner.target is not aten.slice.Tensor or len(inner.users) != 1:
        return
    source = inner.args[0]
    assert isinstance(source, Node)
    steps, spans = {}, {}
    for cut in (inner, node):
        size = value(cut.args[0]).shape[(axis := node_arg(cut, 1, 0))]
        start, end, _ = slice(node_arg(cut, 2, None), node_arg(cut, 3, None)).indices(size)
        steps[axis], spans[axis] = node_arg(cut, 4, 1), (start, end, size)
    if 1 in steps.values() or value(source).dim() != 4 or set(steps) != {2, 3} or not value(source).is_floating_point():
        return
    channels = value(source).shape[1]
    with module.graph.inserting_before(node):
        for axis, (start, end, size) in spans.items():
            if (start, end) != (0, size):
                cut = module.graph.call_function(aten.slice.Tensor, (source, axis, start, end))
                cut.meta = {**node.meta, "val": aten.slice.Tensor(value(source), axis, start, end)}
                source = cut
        ones = set_constant(module, f"{node.name}_ones", torch.ones(channels, 1, 1, 1))
        picked = module.graph.call_function(
            aten.conv2d.default, (source, ones, None, [steps[2], steps[3]], [0, 0], [1, 1], channels)
        )
    picked.meta = dict(node.meta)
    node.replace_all_uses_with(picked)
    module.graph.erase_node(node)
    module.graph.erase_node(inner)
