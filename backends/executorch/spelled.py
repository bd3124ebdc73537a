"""Functions that ExecuTorch's runtime or its delegate's partitioner has no operator for, in operators that they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.fx import Node

from edgeq.graph.ops import node_arg

aten = torch.ops.aten
Call = Callable[..., Any]  # (operator, arguments) → a node in front of the one that is spelled out


def _softplus(call: Call, x: Any, beta: float = 1) -> Any:
    """log(1 + exp(β·x)) / β without overflow."""
    tail = call(aten.exp.default, call(aten.mul.Tensor, call(aten.abs.default, x), -float(beta)))
    tail = call(aten.log.default, call(aten.add.Tensor, tail, 1.0))
    tail = tail if beta == 1 else call(aten.mul.Tensor, tail, 1.0 / beta)
    return call(aten.add.Tensor, call(aten.relu.default, x), tail)


def softplus(call: Call, node: Node) -> Any:
    """aten.softplus of a threshold beyond which the two agree in float32."""
    return _softplus(call, node.args[0], node_arg(node, 1, 1))


def log_sigmoid(call: Call, node: Node) -> Any:
    """−softplus(−x)."""
    return call(aten.neg.default, _softplus(call, call(aten.neg.default, node.args[0])))


def mish(call: Call, node: Node) -> Any:
    """x · tanh(softplus(x))."""
    return call(aten.mul.Tensor, node.args[0], call(aten.tanh.default, _softplus(call, node.args[0])))


def celu(call: Call, node: Node) -> Any:
    """max(x, 0) + α·(exp(min(x, 0) / α) − 1)."""
    alpha = float(node_arg(node, 1, 1.0))
    below = call(aten.relu.default, call(aten.neg.default, node.args[0]))
    below = call(aten.exp.default, call(aten.mul.Tensor, below, -1.0 / alpha))
    below = call(aten.mul.Tensor, call(aten.sub.Tensor, below, 1.0), alpha)
    return call(aten.add.Tensor, call(aten.relu.default, node.args[0]), below)


SPELLED: Final[dict[Any, Callable[[Call, Node], Any]]] = {
    aten.softplus.default: softplus,
    aten.log_sigmoid.default: log_sigmoid,
    aten.mish.default: mish,
    aten.celu.default: celu,
}
