"""Curves alone, each over every integer that it can be given: a program to try what a runtime makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from edgeq.graph.convert import export
from edgeq.graph.integer import DEQUANTIZE, QUANTIZE, IntegerOp, IntegerProgram
from edgeq.graph.ops import constant, set_constant
from edgeq.spec import QParams


def alike(program: IntegerProgram, ops: Sequence[IntegerOp]) -> list[list[IntegerOp]]:
    """`ops` in sets of those that compute the same between the same grids."""
    found: dict[object, list[IntegerOp]] = {}
    for op in ops:
        found.setdefault(_told(program, op), []).append(op)
    return list(found.values())


def trial(program: IntegerProgram, ops: Sequence[IntegerOp]) -> tuple[ExportedProgram, dict[str, str], list[Tensor]]:
    """The program that computes `ops` side by side, its labels as of any program, and its inputs, float32 [1, 256] each."""
    graph = Graph()
    module = GraphModule(torch.nn.Module(), graph)
    inputs = [_values(op.input_qparams[0]) for op in ops]
    placeholders = []
    for index, x in enumerate(inputs):
        placeholders.append(graph.placeholder(f"x{index}"))
        placeholders[-1].meta["val"] = x
    labels: dict[Node, str] = {}
    outputs = []
    for op, source in zip(ops, placeholders, strict=True):
        begun = _boundary(graph, source, op.input_qparams[0])
        made = _copy(program, module, op, begun)
        outputs.append(_boundary(graph, made[op.node], op.output_qparams))
        labels |= dict.fromkeys([*made.values(), *outputs[-1].all_input_nodes], op.layer)
    graph.output(tuple(outputs))
    module.recompile()
    exported, keys = export(module, tuple(inputs), labels)
    return exported, keys, inputs


def entries(op: IntegerOp, answers: Tensor) -> Tensor:
    """The table, int64, that the float answers of a trial of `op` say."""
    out = op.output_qparams
    return torch.clamp(torch.round(answers.double().flatten() / out.step) + out.zero, out.qmin, out.qmax).long()


def _values(qparams: QParams) -> Tensor:
    steps = torch.arange(qparams.qmin, qparams.qmax + 1, dtype=torch.float64)
    return ((steps - qparams.zero) * qparams.step).float().reshape(1, -1)


def _boundary(graph: Graph, source: Node, q: QParams) -> Node:
    numbers = (q.step, q.zero, q.qmin, q.qmax, torch.int8)
    return graph.call_function(DEQUANTIZE, (graph.call_function(QUANTIZE, (source, *numbers)), *numbers))


def _copy(program: IntegerProgram, module: GraphModule, op: IntegerOp, begun: Node) -> dict[Node, Node]:
    """The curve's operators once more, behind `begun`."""
    made: dict[Node, Node] = {}

    def look(node: Node) -> Node:
        if node.op == "get_attr":
            return set_constant(module, str(node.target), constant(program.module, node))
        return begun if node.target is DEQUANTIZE else made[node]

    for node in _members(op):
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), look)
        made[node] = module.graph.call_function(node.target, args, kwargs)  # type: ignore[arg-type] # an aten operator
    return made


def _members(op: IntegerOp) -> list[Node]:
    return [n for n in op.node.graph.nodes if n.name in op.absorbed]


def _told(program: IntegerProgram, op: IntegerOp) -> object:
    places = {node: index for index, node in enumerate(_members(op))}

    def look(node: Node) -> Any:
        if node.op == "get_attr":
            return tuple(constant(program.module, node).flatten().tolist())
        return "x" if node.target is DEQUANTIZE else f"node {places[node]}"

    calls = [(str(n.target), repr(torch.fx.node.map_arg((n.args, n.kwargs), look))) for n in places]
    return (tuple(calls), op.input_qparams[0], op.output_qparams)
