"""Curves: chains of operators that make each value of one tensor another, so that from int8 to int8 they are a table.

x · sigmoid(x) is one as silu(x) is, and y / 6 + 1 behind a convolution. Between integers a curve means the table that its
functions in float64, rounded half to even, come to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from edgeq.graph.kinds import role_of
from edgeq.graph.ops import aten_name, constant, kind_of, node_arg, value
from edgeq.spec import QParams

POINTWISE: Final = frozenset((
    *("relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "threshold", "hardshrink", "softshrink"),
    *("sigmoid", "log_sigmoid", "hardsigmoid", "tanh", "tanhshrink", "silu", "hardswish", "gelu", "mish", "softplus"),
    *("elu", "selu", "celu", "leaky_relu", "prelu", "erf", "abs", "neg", "square", "sign", "sgn"),
    *("sqrt", "rsqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "reciprocal"),
    *("sin", "cos", "atan", "sinh", "cosh"),
    *("floor", "ceil", "trunc", "pow", "add", "sub", "rsub", "mul", "div", "maximum", "minimum"),
    *("where", "gt", "ge", "lt", "le"),
))  # fmt: skip
SMOOTH: Final = 15.0  # exp(-15) is below the last bit of what it is added to in float32
NUMBERS: Final = 16  # bits of the widest input that a table is made for


@dataclass(frozen=True, slots=True)
class Curve:
    """The operators of a curve in their order, the last of which gives its values; source: the tensor that all begin with."""

    source: Node
    nodes: tuple[Node, ...]


def curves(graph: Graph, alike: Callable[[Node], Hashable | None]) -> dict[Node, Curve]:
    """Last operator → curve, as long as they get.

    alike: what operators of one curve must agree in; None keeps one out. What is read elsewhere too ends its curve.
    """
    ends: set[Node] = set()
    while True:
        root = _roots(graph, alike, ends)
        reached: dict[Node, set[Node]] = {}
        for node in reversed(root):
            inside = [u for u in node.users if root.get(u) is root[node] and node not in ends]
            outside = len(inside) < len(node.users) or not inside
            reached[node] = {node} if outside else set().union(*(reached[u] for u in inside))
        new = {n for n, to in reached.items() if to == {n} or len(to) > 1} - ends
        if not new:
            break
        ends |= new
    found = {}
    for end in ends & root.keys():
        nodes = [n for n in root if reached[n] == {end}]
        if value(end).is_floating_point() and (len(nodes) > 1 or role_of(kind_of(end)) != "clip"):
            found[end] = Curve(root[end], tuple(nodes))
    return found


def _roots(graph: Graph, alike: Callable[[Node], Hashable | None], ends: set[Node]) -> dict[Node, Node]:
    """Operator → the one tensor that its value depends on; in order."""
    root: dict[Node, Node] = {}
    for node in graph.nodes:
        label = alike(node) if _takes(node) else None
        if label is None:
            continue
        found: set[Node] = set()
        for source in _sources(node):
            joined = source in root and source not in ends and alike(source) == label
            found.add(root[source] if joined else source)
        if len(found) != 1:
            continue
        (first,) = found
        fusable = role_of(kind_of(node)) == "clip" and first in node.all_input_nodes and len(first.users) == 1
        if not fusable and value(first).is_floating_point() and value(first).shape == value(node).shape:
            root[node] = first
    return root


def _takes(node: Node) -> bool:
    """Whether an operator makes each value of its tensors another, its constants being single numbers."""
    aten = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"
    if not aten or aten_name(node) not in POINTWISE or not isinstance(node.meta.get("val"), Tensor):
        return False
    return bool(value(node).dim()) and all(n.op != "get_attr" or value(n).numel() == 1 for n in node.all_input_nodes)


def _sources(node: Node) -> list[Node]:
    return [n for n in node.all_input_nodes if n.op != "get_attr"]


def smooth(node: Node) -> bool:
    """Whether a softplus is one all along: beyond a low threshold torch's is its input itself."""
    return node.target is not torch.ops.aten.softplus.default or float(node_arg(node, 2, 20)) >= SMOOTH


def behind(last: Node, reads: object) -> Curve | None:
    """The curve of a QDQ program that ends in `last`, begun by calls of `reads` that all read one tensor; None: it is none."""
    found: dict[Node, None] = {}
    begins: dict[Node, None] = {}
    pending = [last]
    while pending:
        node = pending.pop()
        if node.target is reads:
            begins[node] = None
        elif node not in found:
            if not _takes(node):
                return None
            found[node] = None
            pending += _sources(node)
    inside = all(user in found for node in found if node is not last for user in node.users)
    if not begins or not inside or len({(n.args[0], *n.args[1:5]) for n in begins}) != 1:
        return None
    return Curve(next(iter(begins)), tuple(n for n in last.graph.nodes if n in found))


def values(module: GraphModule, curve: Curve, x: Tensor, reads: object = None) -> Tensor:
    """What the curve makes of `x`, of any shape, in the precision of `x`. reads: what stands for `x`, beside its source."""
    held: dict[Node, Any] = {}
    one: Any = None  # the operator that reads

    def look(node: Node) -> Any:
        if node.op == "get_attr":
            number = constant(module, node)
            number = number.to(x.dtype) if number.is_floating_point() else number
            return number.reshape(1 if one is torch.ops.aten.prelu.default else ())
        return x if node is curve.source or node.target is reads else held[node]

    with torch.no_grad():
        for node in curve.nodes:
            one = node.target
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), look)
            held[node] = node.target(*args, **kwargs)  # type: ignore[operator] # an aten operator
    found: Tensor = held[curve.nodes[-1]]
    return found


def entries(module: GraphModule, curve: Curve, given: QParams, made: QParams, reads: object = None) -> Tensor | None:
    """The table: for each integer of the grid `given` from its lowest on, the integer on `made`, int64.

    None where a value is no number, or none that is finite, or there are more than NUMBERS bits of them.
    """
    if (given.qmax - given.qmin).bit_length() > NUMBERS:
        return None
    steps = torch.arange(given.qmin, given.qmax + 1, dtype=torch.float64)
    found = values(module, curve, (steps - given.zero) * given.step, reads)
    if not bool(found.isfinite().all()) or not math.isfinite(made.step):
        return None
    return torch.clamp(torch.round(found / made.step) + made.zero, made.qmin, made.qmax).long()
