"""The QDQ program for running it often on this host: the same numbers in fewer passes over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgeq.graph.coded import fake_quantize
from edgeq.graph.integer import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE
from edgeq.graph.kinds import KINDS
from edgeq.graph.ops import constant, data_inputs, kind_of
from edgeq.graph.ordered import ordered


def shortcut(module: GraphModule) -> GraphModule:
    """`module` changed in place and returned: ReLU → quantize → dequantize as one operator, weights dequantized once.

    What only moves values of a grid is not put on that grid again: a gather's result may be 27 times its source. Every output
    stays what it was, bit for bit.
    """
    kinds = {n: kind_of(n) for n in module.graph.nodes}
    for node in list(module.graph.nodes):
        if node.target is DEQUANTIZE and _pair(node):
            source = node.args[0]
            value, scale, zero, low, high, _ = source.args
            if kinds.get(value) == "relu" and zero == low and len(value.users) == 1:
                value = value.args[0]  # the grid begins at 0
            with module.graph.inserting_before(node):
                short = module.graph.call_function(fake_quantize, (value, scale, zero, low, high))
            node.replace_all_uses_with(short)
        elif node.target in DEQUANTIZE_WEIGHT and all(n.op == "get_attr" for n in node.all_input_nodes):
            given = torch.fx.map_arg(node.args, lambda n: constant(module, n))
            module.register_buffer(f"{node.name}_real", node.target(*given))
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(module.graph.get_attr(f"{node.name}_real"))
    grids = {n: n.args[1:] for n in module.graph.nodes if n.target is fake_quantize}
    for node, kind in kinds.items():
        if kind is None or not KINDS[kind].keeps_grid:
            continue
        grid, *others = {grids.get(source) for source in data_inputs(node, kind)}
        if grid is not None and not others:
            grids[node] = grid
            for again in [u for u in node.users if grids.get(u) == grid]:
                again.replace_all_uses_with(node)
                grids.pop(again)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    return module


def _pair(node: Node) -> bool:
    """Whether `node` dequantizes what a quantize with the same numbers made."""
    source = node.args[0]
    return isinstance(source, Node) and source.target is QUANTIZE and source.args[1:] == node.args[1:]


def read_by_outputs(module: GraphModule, inputs: Sequence[Tensor]) -> list[float]:
    """For each output of a float module the largest finite value, without its sign, that the operator behind it reads."""
    results = [n for n in torch.utils._pytree.tree_leaves(module.graph.output_node().args) if isinstance(n, Node)]
    found = dict.fromkeys(results, 0.0)
    readers: dict[Node, list[Node]] = {}
    for node in found:
        for source in node.all_input_nodes:
            readers.setdefault(source, []).append(node)

    class Reading(Interpreter):
        """Looks at what outputs are computed of."""

        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n in readers and isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                largest = float(torch.where(value.isfinite(), value, 0.0).abs().max())
                found.update({node: max(found[node], largest) for node in readers[n]})
            return value

    with torch.no_grad(), ordered():
        Reading(module).run(*inputs)
    return [found[node] for node in results]
