"""Run a .pt2 file here: every node of it in float64, which holds all sums of int8 products exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from edgeq.graph.integer import DEQUANTIZE, DEQUANTIZE_CHANNEL, QUANTIZE
from edgeq.graph.package import load_program


def load(path: Path, *, threads: int = 1) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A function from flat inputs to flat outputs.

    Raises:
        EdgeqError: `path` is no whole program.
    """
    module = load_program(path).module(check_guards=False)

    def predict(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        found = _Double(module).run(*inputs)
        return tuple(y.float() if y.is_floating_point() else y for y in torch.utils._pytree.tree_leaves(found))

    return predict


class _Double(Interpreter):
    def run_node(self, n: Node) -> Any:
        args, _ = self.fetch_args_kwargs_from_env(n)
        if n.target is QUANTIZE:
            x, scale, zero, low, high, dtype = args
            entering = n.args[0].op == "placeholder"  # type: ignore[union-attr] # a node
            steps = (x.float() * torch.tensor(1 / scale)).double() if entering else x / scale
            return (steps.round() + zero).clamp(low, high).to(dtype)
        if n.target is DEQUANTIZE:
            return (args[0].double() - args[2]) * args[1]
        if n.target is DEQUANTIZE_CHANNEL:
            codes, scales, _, axis = args[:4]
            return codes.double() * scales.double().view([-1 if i == axis else 1 for i in range(codes.dim())])
        value = super().run_node(n)
        return value.double() if isinstance(value, Tensor) and value.dtype == torch.float32 else value
