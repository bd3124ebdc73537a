"""Execute a QDQ program with exact integer sums and one runtime's own rounding: predicts that runtime's bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.graph.arithmetic.kernels import Kernels
from edgeq.graph.integer import DEQUANTIZE, QUANTIZE, IntegerProgram, tensor_qparams, without
from edgeq.graph.ops import constant


def simulate(
    program: IntegerProgram,
    inputs: Sequence[Tensor],
    arithmetic: str,
    *,
    watch: Callable[[Node, Tensor], None] | None = None,
    enters: Callable[[Node, Tensor], None] | None = None,
    tables: Mapping[str, Tensor] = MappingProxyType({}),
) -> tuple[Tensor, ...]:
    """Run `program` on flat `inputs` as the kernel set `arithmetic` would.

    Integer operators go through edgeq.graph.arithmetic.<arithmetic>, but for the kinds that are missing there
    and what is beyond its kernels; these and other float islands run in torch float32.
    watch: called with every quantize node and its int8 value, in order. enters: called with every quantize node that no
    integer operator computes and the float value that it takes. tables: name of a curve's operator → what it gives for each
    input from the lowest on, where that is known of the runtime itself. Returns the outputs, float where the program
    dequantizes them.
    """
    rule: Kernels = import_module(f"edgeq.graph.arithmetic.{arithmetic}").KERNELS
    program = without(program, rule.missing, rule.limited, keep=lambda op: op.name in tables)
    needed = _needed(program)
    values: dict[Node, Any] = {}
    feed = iter(inputs)
    by_name = {n.name: n for n in program.module.graph.nodes}
    with torch.no_grad():
        for node in program.module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(feed)
            elif node not in needed:
                continue
            elif node.op == "get_attr":
                values[node] = rule.constant(constant(program.module, node))
            elif node.target is QUANTIZE:
                op = program.ops.get(node.name)
                if op is None:
                    if enters is not None:
                        enters(node, values[node.args[0]])
                    values[node] = rule.quantize(values[node.args[0]], tensor_qparams(node))
                elif op.name in tables:
                    codes = values[by_name[op.inputs[0]]]
                    values[node] = tables[op.name].to(codes.dtype)[codes.long() - op.input_qparams[0].qmin]
                elif op.table is not None:  # every kernel set copies rows alike
                    rows = values[by_name[op.inputs[0]]].index_select(0, values[op.table].flatten())
                    values[node] = rows.clamp(op.low, op.high)
                else:
                    values[node] = rule.compute(op, [values[by_name[name]] for name in op.inputs])
                if watch is not None:
                    watch(node, values[node])
            elif node.target is DEQUANTIZE:
                values[node] = rule.widen(values[node.args[0]], tensor_qparams(node))
            elif node.op == "call_function":
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: values[n])
                values[node] = node.target(*rule.arguments(node.target, args), **kwargs)
            elif node.op == "output":
                flat = torch.utils._pytree.tree_leaves(torch.fx.map_arg(node.args, lambda n: values[n]))
                return tuple(flat)
    raise AssertionError("a program without an output")


def _needed(program: IntegerProgram) -> set[Node]:
    """Nodes whose value somebody asks for, integer operators taken as one step."""
    by_name: Mapping[str, Node] = {n.name: n for n in program.module.graph.nodes}
    pending = [program.module.graph.output_node()]
    found: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        op = program.ops.get(node.name) if node.target is QUANTIZE else None
        pending.extend([by_name[name] for name in op.inputs] if op else node.all_input_nodes)
    return found
