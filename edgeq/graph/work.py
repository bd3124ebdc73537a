"""The network's own layers as the QDQ program computes them, and how many multiply-accumulates each of them takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import getitem

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from edgeq.graph.integer import IntegerProgram, members
from edgeq.graph.ops import integral

PRODUCTS = ("conv", "linear", "mm", "matmul", "attention", "einsum", "gru", "lstm", "rnn")  # in names of aten operators


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator of the network, with what is fused into it; what edgeq or a converter puts between layers is none.

    keys: its layer key, then those of what is fused into it. kind: of an integer operator; empty in float.
    macs: multiply-accumulates of one inference.
    """

    keys: tuple[str, ...]
    kind: str
    macs: int


def layers(program: IntegerProgram, labels: Mapping[str, str]) -> tuple[Layer, ...]:
    """Every layer of `program` in order: what all counts of operators, of every verb and runtime, add up to."""
    keys = members(program, labels)
    found: dict[str, Layer] = {}
    owner = {name: op for op in program.ops.values() for name in op.absorbed if op.kind != "requantize"}
    floats = {node.name for node in program.floats if node.target is not getitem}
    for node in program.module.graph.nodes:
        op = owner.get(node.name)
        if op is not None:
            found.setdefault(op.name, Layer(keys.get(op.name, (op.name,)), op.kind, macs(op.node)))
        elif node.name in floats:
            found[node.name] = Layer(keys.get(node.name, (node.name,)), "", macs(node))
    return tuple(found.values())


def macs(node: Node) -> int:
    """Multiply-accumulates of one call of an operator, from the shapes that it was captured with; 0 where it sums no products."""
    if not any(word in getattr(node.target, "__name__", "") for word in PRODUCTS) or integral(node):
        return 0
    assert isinstance(node.target, torch._ops.OpOverload)

    def shaped(argument: Node) -> object:
        recorded = argument.meta.get("val")
        return torch.empty_like(recorded, device="meta") if isinstance(recorded, Tensor) else recorded

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        node.target(*map_arg(node.args, shaped), **map_arg(node.kwargs, shaped))  # type: ignore[arg-type] # shaped takes nodes
    return int(counter.get_total_flops()) // 2
