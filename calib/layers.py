"""The layers whose weights are quantized, as the captured graph has them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from edgeq.graph.annotate import Annotation
from edgeq.graph.capture import Captured
from edgeq.graph.kinds import role_of, weights_of
from edgeq.graph.ops import constant, kind_of, node_arg
from edgeq.spec import Grid


@dataclass(frozen=True, slots=True)
class WeightedLayer:
    """A layer whose weights are quantized; `source` is its input where that is quantized too. `axis`: C_out of weight."""

    node: Node
    key: str
    kind: str
    weight: Tensor
    bias: Tensor | None
    axis: int
    grid: Grid
    source: Node | None


def weighted_layers(captured: Captured, annotation: Annotation) -> dict[Node, WeightedLayer]:
    """Every layer with quantized weights: those of integer operators, then the weight-only ones."""
    found = [(g.key, g.node, g.precision, g.inputs[0]) for g in annotation.groups if role_of(g.kind) == "layer"]
    alone = [(key, node, wanted, None) for key, (node, wanted) in annotation.weight_only.items()]
    layers = {}
    for key, node, wanted, source in (*found, *alone):
        kind = kind_of(node) or ""
        at = weights_of(kind)
        weight, bias = node.args[at.weight], node_arg(node, at.bias, None)
        assert isinstance(weight, Node) and wanted.weight is not None
        moved = constant(captured.module, bias) if isinstance(bias, Node) else None
        layers[node] = WeightedLayer(
            node, key, kind, constant(captured.module, weight), moved, at.axis, wanted.weight, source
        )
    return layers
