"""What a layer computes, in one line that does not name it: layers of two networks with the same line take the same time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from edgeq.graph.ops import kind_of


def signatures(program: ExportedProgram, labels: Mapping[str, str]) -> dict[str, str]:
    """Layer key → operator kind with the shapes of what it reads and its other arguments.

    program: the float network. labels: node name → layer key. `conv2d(1x16x32x32, 32x16x3x3, 32, [2, 2], [1, 1])`.
    """
    found = {}
    for node in program.graph.nodes:
        if node.name in labels and node.op == "call_function":
            said = [_say(argument) for argument in node.args]
            said += [f"{name}={_say(argument)}" for name, argument in sorted(node.kwargs.items())]
            kind = kind_of(node) or getattr(node.target, "__name__", str(node.target)).split(".")[0]
            found[labels[node.name]] = f"{kind}({', '.join(said)})"
    return found


def _say(argument: Any) -> str:
    if isinstance(argument, Node):
        value = argument.meta.get("val")
        return "x".join(str(d) for d in value.shape) or "1" if isinstance(value, Tensor) else "?"
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(_say(a) for a in argument)}]"
    return str(argument)
