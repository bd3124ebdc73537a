"""Exact rewrites every network gets on capture: one spelling per operator, BatchNorm folded, padding inside the kernel."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeq.graph.ops import WEIGHTED, constant, conv_attrs, kind_of, node_arg, set_constant, value
from edgeq.spec import EdgeqError

aten = torch.ops.aten

NO_OPS = (
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)
POOLS = (aten.max_pool2d.default, aten.avg_pool2d.default)
IMAGES = ("conv2d", "depthwise_conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d")
BATCH_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)


def normalise(module: GraphModule) -> None:
    """Rewrite `module` in place; every rewrite leaves the function as it was, up to float rounding."""
    for node in list(module.graph.nodes):
        if kind_of(node) in WEIGHTED:
            _settle_weight(module, node)
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if kind_of(node) in IMAGES and value(node.args[0]).dim() != 4:
            raise EdgeqError(
                f"{node.name}: a {kind_of(node)} without a batch axis, which runtimes' kernels want: give it four axes, as "
                "x[None] does"
            )
        if node.target in NO_OPS:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif node.target in (aten.conv2d.padding, aten.conv1d.padding):
            _explicit_padding(node)
        elif node.target in POOLS and len(node.args) == 2:  # the stride is the window where it is left out
            node.args = (*node.args, node.args[1])
        elif node.target in BATCH_NORMS:
            _fold_batch_norm(module, node)
        elif node.target in (aten.pixel_shuffle.default, aten.pixel_unshuffle.default):
            _spell_out_pixel_shuffle(module, node)
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if kind_of(node) == "pad":
            _pad_into_convolution(module, node)
        elif node.target is aten.slice.Tensor:
            _subsample_as_convolution(module, node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()


def _settle_weight(module: GraphModule, node: Node) -> None:
    """A weight that is computed of parameters alone, as weight_norm's, becomes the parameter that it is."""
    weight = node.args[WEIGHTED[kind_of(node) or ""][0]]
    if not isinstance(weight, Node) or weight.op != "call_function":
        return
    settled = _settled(module, weight)
    if settled is None:
        return
    with module.graph.inserting_before(weight):
        weight.replace_all_uses_with(set_constant(module, f"{weight.name}_settled", settled.detach().clone()))


def _settled(module: GraphModule, node: Node) -> Any:
    """What `node` computes, where nothing of it comes from the network's inputs; else None."""
    if node.op == "get_attr":
        return constant(module, node)
    sources = node.all_input_nodes
    values = {n: _settled(module, n) for n in sources} if node.op == "call_function" else {}
    if not values or any(v is None for v in values.values()):
        return None
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator] # an aten operator


def _explicit_padding(node: Node) -> None:
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


def _fold_batch_norm(module: GraphModule, node: Node) -> None:
    """BatchNorm into the convolution or linear before it; alone it becomes a 1×1 depthwise convolution.

    w' = w·γ/√(σ²+ε), b' = (b − μ)·γ/√(σ²+ε) + β, in float64.
    """
    source, mean, var = node.args[0], node.args[3], node.args[4]
    if mean is None or var is None:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        raise EdgeqError(
            f"{stack[-1][0] if stack else node.name}: a BatchNorm with track_running_stats=False takes its statistics from "
            "every batch anew, which no runtime's BatchNorm does: train it with running statistics, or use InstanceNorm"
        )
    eps = float(node.args[7] if node.target is aten.batch_norm.default else node.args[6])  # type: ignore[arg-type] # a float
    assert isinstance(source, Node) and isinstance(mean, Node) and isinstance(var, Node)
    mu, sigma = constant(module, mean).double(), torch.sqrt(constant(module, var).double() + eps)
    gamma = _optional(module, node.args[1], torch.ones_like(mu))
    beta = _optional(module, node.args[2], torch.zeros_like(mu))
    factor = gamma / sigma
    kind = kind_of(source)
    foldable = kind in ("conv1d", "conv2d", "depthwise_conv2d", "conv_transpose2d", "linear")
    grouped_transposed = kind == "conv_transpose2d" and conv_attrs(source, "conv_transpose2d").groups != 1
    with module.graph.inserting_before(node):
        if foldable and len(source.users) == 1 and not grouped_transposed and _is_constant(source.args[1]):
            assert isinstance(source.args[1], Node)
            weight, bias = (
                constant(module, source.args[1]).double(),
                _optional(module, node_arg(source, 2, None), 0 * mu),
            )
            shape = [1] * weight.dim()
            shape[1 if kind == "conv_transpose2d" else 0] = -1
            with module.graph.inserting_before(source):
                folded = set_constant(module, f"{source.args[1].target}", weight * factor.view(shape))
                folded_bias = set_constant(module, f"{source.name}_bias", (bias - mu) * factor + beta)
            source.args = (source.args[0], folded, folded_bias, *source.args[3:])
            result = source
        elif value(source).dim() == 4:
            channels = mu.numel()
            weight_node = set_constant(module, f"{node.name}_weight", factor.view(channels, 1, 1, 1))
            bias_node = set_constant(module, f"{node.name}_bias", beta - mu * factor)
            result = module.graph.call_function(
                aten.conv2d.default, (source, weight_node, bias_node, [1, 1], [0, 0], [1, 1], channels)
            )
            result.meta = {**node.meta, "val": value(source)}
        else:
            return
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(result)
            module.graph.erase_node(user)
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)


def _is_constant(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "get_attr"


def _optional(module: GraphModule, node: Any, default: Tensor) -> Tensor:
    return constant(module, node).double() if isinstance(node, Node) else default


def _spell_out_pixel_shuffle(module: GraphModule, node: Node) -> None:
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


def _pad_into_convolution(module: GraphModule, pad: Node) -> None:
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


def _subsample_as_convolution(module: GraphModule, node: Node) -> None:
    """x[:, :, ::s, ::t] as a 1×1 depthwise convolution of ones with that stride: every runtime has an integer kernel for it."""
    inner = node.args[0]
    if not isinstance(inner, Node) or inner.target is not aten.slice.Tensor or len(inner.users) != 1:
        return
    source = inner.args[0]
    assert isinstance(source, Node)
    steps = {}
    for cut in (inner, node):
        axis, start, end = node_arg(cut, 1, 0), node_arg(cut, 2, None), node_arg(cut, 3, None)
        if start not in (None, 0) or (end is not None and end < value(cut.args[0]).shape[axis]):
            return
        steps[axis] = node_arg(cut, 4, 1)
    if value(source).dim() != 4 or set(steps) != {2, 3} or not value(source).is_floating_point():
        return
    channels = value(source).shape[1]
    with module.graph.inserting_before(node):
        ones = set_constant(module, f"{node.name}_ones", torch.ones(channels, 1, 1, 1))
        picked = module.graph.call_function(
            aten.conv2d.default, (source, ones, None, [steps[2], steps[3]], [0, 0], [1, 1], channels)
        )
    picked.meta = dict(node.meta)
    node.replace_all_uses_with(picked)
    module.graph.erase_node(node)
    module.graph.erase_node(inner)
