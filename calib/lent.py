"""A network that steps work on: they may put other constants into it, and its owner gets it back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.fx import GraphModule, Node

from edgeq.graph.ops import constant


@contextmanager
def lent(module: GraphModule) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """Yields what tells the exchanged constants, by node name and argument (see Resolved); at the end they are undone."""
    own = {node: node.args for node in module.graph.nodes}
    buffers = {name for name, _ in module.named_buffers()}

    def exchanged() -> dict[str, Tensor]:
        return {
            f"{node.name} {index}": constant(module, new)
            for node, args in own.items()
            for index, (old, new) in enumerate(zip(args, node.args, strict=False))
            if isinstance(new, Node) and new is not old
        }

    try:
        yield exchanged
    finally:
        for node, args in own.items():
            node.args = args
        for node in [n for n in module.graph.nodes if n not in own]:
            module.graph.erase_node(node)
        for name in [name for name, _ in module.named_buffers() if name not in buffers]:
            delattr(module, name)
        module.recompile()
