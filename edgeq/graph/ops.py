"""Which aten operator is of which kind (edgeq.graph.kinds), and how to read its call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeq.graph.kinds import KINDS

aten = torch.ops.aten

# aten operator -> kind. `depthwise_conv2d` is told apart from `conv2d` by its groups, see `kind_of`.
OPERATORS: dict[Any, str] = {
    aten.conv1d.default: "conv1d",
    aten.conv2d.default: "conv2d",
    aten.conv_transpose2d.input: "conv_transpose2d",
    aten.linear.default: "linear",
    aten.add.Tensor: "add",
    aten.add_.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.mul.Tensor: "mul",
    aten.cat.default: "cat",
    aten.max_pool2d.default: "max_pool2d",
    aten.avg_pool2d.default: "avg_pool2d",
    aten.mean.dim: "mean",
    aten.adaptive_avg_pool2d.default: "mean",
    aten.relu.default: "relu",
    aten.relu_.default: "relu",
    aten.relu6.default: "relu6",
    aten.hardtanh.default: "clamp",
    aten.hardtanh_.default: "clamp",
    aten.clamp.default: "clamp",
    aten.view.default: "reshape",
    aten.reshape.default: "reshape",
    aten.flatten.using_ints: "reshape",
    aten.squeeze.dim: "reshape",
    aten.squeeze.dims: "reshape",
    aten.unsqueeze.default: "reshape",
    aten.permute.default: "permute",
    aten.transpose.int: "permute",
    aten.permute_copy.default: "permute",
    aten.slice.Tensor: "slice",
    aten.pad.default: "pad",
    aten.constant_pad_nd.default: "pad",
    aten.upsample_nearest2d.vec: "upsample_nearest",
    aten.upsample_nearest2d.default: "upsample_nearest",
    aten.index_select.default: "gather",
    aten.softmax.int: "softmax",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.matmul.default: "matmul",
    aten.bmm.default: "matmul",
}


def kind_of(node: Node) -> str | None:
    """The kind of `node`, or None for an operator edgeq knows no integer form of.

    A conv2d with one input channel per group and as many groups as inputs is `depthwise_conv2d`. add, sub and mul
    count only between two tensors, adaptive_avg_pool2d only to 1×1, pad only with a constant 0, gather only along the
    first axis by an input of the graph.
    """
    if node.op != "call_function":
        return None
    kind = OPERATORS.get(node.target)
    if kind == "conv2d":
        weight = value(node.args[1])
        if node_arg(node, 6, 1) == weight.shape[0] and weight.shape[1] == 1:
            return "depthwise_conv2d"
    elif kind in ("add", "sub", "mul"):
        both = all(isinstance(a, Node) and value(a).is_floating_point() for a in node.args[:2])
        if not both or node.kwargs.get("alpha", 1) != 1:
            return None
    elif node.target is aten.adaptive_avg_pool2d.default and tuple(node.args[1]) != (1, 1):  # type: ignore[arg-type] # a list of ints
        return None
    elif kind == "pad":
        constant = node.target is aten.constant_pad_nd.default or node_arg(node, 2, "constant") == "constant"
        fill = node_arg(node, 2, 0) if node.target is aten.constant_pad_nd.default else node_arg(node, 3, None)
        if not constant or (fill or 0) != 0:
            return None
    elif kind == "gather" and (node.args[1] not in (0, -value(node.args[0]).dim()) or table(node) is None):
        return None
    return kind


def operator_name(node: Node) -> str:
    """What people call the operator of `node`: its kind; where it has none, aten's name."""
    return kind_of(node) or aten_name(node)


def aten_name(node: Node) -> str:
    """aten's name of a node's operator."""
    name: str = getattr(node.target, "__name__", str(node.target))
    return name.split(".")[0]


def table(node: Node) -> Node | None:
    """The graph's input that a gather picks its rows by, behind changes of its shape; None where it is computed."""
    found = node.args[2]
    while isinstance(found, Node) and OPERATORS.get(found.target) == "reshape":
        found = found.args[0]
    return found if isinstance(found, Node) and found.op == "placeholder" else None


def integral(node: Node) -> bool:
    """Whether `node` makes integers (or truth values) of nothing else: tables and indices, which keep their type."""
    tensors = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    return all(isinstance(t, Tensor) and not t.is_floating_point() for t in tensors)


def node_arg(node: Node, index: int, default: Any) -> Any:
    """Positional argument `index` of `node`, `default` where the call leaves it out."""
    return node.args[index] if len(node.args) > index else default


def value(node: Any) -> torch.Tensor:
    """The fake tensor that export recorded for `node`: its shape and dtype."""
    recorded = node.meta["val"]
    assert isinstance(recorded, torch.Tensor)
    return recorded


def constant(module: GraphModule, node: Node) -> Tensor:
    """The tensor behind a get_attr node."""
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    assert isinstance(found, Tensor)
    return found.detach()


def set_constant(module: GraphModule, name: str, tensor: Tensor) -> Node:
    """Register `tensor` as a buffer of its own and return a get_attr node for it at the graph's insertion point.

    Float64 is stored as float32, integers as they are. The name is made free of dots and unique.
    """
    base = name.replace(".", "_")
    unique, count = base, 1
    while hasattr(module, unique):
        unique, count = f"{base}_{count}", count + 1
    stored = tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor
    module.register_buffer(unique, stored.contiguous())
    node = module.graph.get_attr(unique)
    node.meta["val"] = stored
    return node


def data_inputs(node: Node, kind: str) -> tuple[Node, ...]:
    """The activation tensors that a node of `kind` reads, weights and bias left out."""
    inputs = KINDS[kind].inputs
    arguments = node.args[0] if inputs is None else node.args[:inputs]
    return tuple(a for a in arguments if isinstance(a, Node))  # type: ignore[union-attr] # cat takes a list


def clip_bounds(node: Node, kind: str) -> tuple[float | None, float | None]:
    """Lower and upper bound of an activation node in real numbers; None is unbounded."""
    if kind == "relu":
        return 0.0, None
    if kind == "relu6":
        return 0.0, 6.0
    hardtanh = node.target in (aten.hardtanh.default, aten.hardtanh_.default)
    low = node_arg(node, 1, node.kwargs.get("min", -1.0 if hardtanh else None))
    high = node_arg(node, 2, node.kwargs.get("max", 1.0 if hardtanh else None))
    return (None if low is None else float(low)), (None if high is None else float(high))


@dataclass(frozen=True, slots=True)
class ConvAttrs:
    """Geometry of a convolution; `axes` spatial axes (1 or 2), every tuple that long."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] | None = None  # transposed convolution only


def conv_attrs(node: Node, kind: str) -> ConvAttrs:
    """Read a convolution's geometry off its aten call, filling in aten's defaults."""
    axes = 1 if kind == "conv1d" else 2

    def spread(raw: Any) -> tuple[int, ...]:
        items = tuple(int(i) for i in raw) if isinstance(raw, (list, tuple)) else (int(raw),)
        return items * axes if len(items) == 1 else items

    stride, padding = spread(node_arg(node, 3, 1)), spread(node_arg(node, 4, 0))
    if kind == "conv_transpose2d":  # (…, stride, padding, output_padding, groups, dilation)
        output_padding, groups = spread(node_arg(node, 5, 0)), int(node_arg(node, 6, 1))
        return ConvAttrs(stride, padding, spread(node_arg(node, 7, 1)), groups, output_padding)
    return ConvAttrs(stride, padding, spread(node_arg(node, 5, 1)), int(node_arg(node, 6, 1)))
