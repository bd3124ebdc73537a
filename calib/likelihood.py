"""What a network's outputs say: a class, or numbers. Where nothing else is known of a task, its loss follows from that."""

from __future__ import annotations

from torch.fx import Node

from edgeq.calib.floats import Floats
from edgeq.graph.capture import Captured
from edgeq.graph.ops import kind_of, value


def names_classes(captured: Captured) -> bool:
    """Whether there is one output of floats [N, C], C > 1, for N examples: logits, or a distribution, over classes."""
    results = captured.module.graph.output_node().args[0]
    if not isinstance(results, (tuple, list)) or len(results) != 1 or not isinstance(results[0], Node):
        return False
    made = value(results[0])
    sized = made.dim() == 2 and made.shape[0] == Floats(captured).first and made.shape[1] > 1
    return sized and made.is_floating_point()


def is_softened(captured: Captured) -> bool:
    """Whether what names classes is a distribution already, behind a softmax."""
    results = captured.module.graph.output_node().args[0]
    return names_classes(captured) and kind_of(results[0]) == "softmax"  # type: ignore[arg-type, index] # a tuple of one node
