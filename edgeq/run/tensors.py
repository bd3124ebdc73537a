"""What quantization does to every tensor of a model: error, range, clipping and a histogram."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from edgeq.graph.coded import dequantize, spread
from edgeq.graph.far import sqnr_db
from edgeq.graph.integer import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, coded_weight, tensor_qparams
from edgeq.graph.kinds import role_of, weights_of
from edgeq.graph.ops import constant, kind_of, operator_name
from edgeq.graph.package import QuantizedModel
from edgeq.spec import QParams


@dataclass(frozen=True, slots=True)
class TensorStats:
    """One quantized tensor beside the float network's value of it.

    key: the layer that computes it (or, with role `weight`, owns it), `input x` for an input. kind: that layer's kind.
    sqnr_db: QDQ program against float network on one batch, everything upstream quantized too; for weights, the
        rounding alone. Infinite where nothing differs.
    scale, zero_point: per tensor; of weights the largest channel's scale, zero point 0.
    low, high: smallest and largest value the integers can say.
    minimum, maximum, counts: histogram of the float values, equal bins over [minimum, maximum].
    clipped: share of float values beyond low or high by more than half a step.
    channels: per-channel weights only: smallest, median and largest of the channels' ranges (the largest |value| each
        can say).
    """

    key: str
    kind: str
    role: str
    shape: tuple[int, ...]
    sqnr_db: float
    scale: float
    zero_point: int
    low: float
    high: float
    minimum: float
    maximum: float
    clipped: float
    counts: tuple[int, ...]
    channels: tuple[float, float, float] | None = None


def tensors(model: QuantizedModel, batch: Sequence[Tensor], bins: int = 96) -> list[TensorStats]:
    """Every quantized activation of `model` on flat `batch`, in the program's order, then every quantized weight.

    One pass of the float network and one of the QDQ program.
    """
    twin, program = _module(model.twin), _module(model.program)
    twin_nodes = {model.twin_labels[n.name]: n for n in twin.graph.nodes if n.name in model.twin_labels}
    twin_inputs = {n.name: n for n in twin.graph.nodes if n.op == "placeholder"}
    quantizes = [n for n in program.graph.nodes if n.target is QUANTIZE and n.args[0].target is not DEQUANTIZE]
    origin = {q: _twin_of(q, model, twin_nodes, twin_inputs) for q in quantizes}
    wanted = set(origin.values())
    floats: dict[Node, Tensor] = {}
    found: list[TensorStats] = []
    remaining = {node: list(origin.values()).count(node) for node in wanted}

    def keep(node: Node, value: Any) -> None:
        if node in wanted:
            floats[node] = value

    def compare(node: Node, value: Any) -> None:
        if node not in origin:  # a tensor that is requantized has its row already
            return
        source = origin[node]
        key = model.labels.get(node.name) or _key_of(source, model.twin_labels)
        kind = "input" if source.op == "placeholder" else operator_name(source)
        found.append(_activation(key, kind, floats[source], value, tensor_qparams(node), bins))
        remaining[source] -= 1
        if remaining[source] == 0:
            del floats[source]

    with torch.no_grad():
        _Watched(twin, keep).run(*batch)
        _Watched(program, compare).run(*batch)
    return found + _weights(model, program, twin, twin_nodes, bins)


class _Watched(Interpreter):
    """Runs a graph, shows every value once, and frees it after its last use."""

    def __init__(self, module: GraphModule, see: Callable[[Node, Any], None]) -> None:
        super().__init__(module)
        self.see = see

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.see(n, value)
        return value


def _module(program: torch.export.ExportedProgram) -> GraphModule:
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def _twin_of(quantize: Node, model: QuantizedModel, nodes: dict[str, Node], inputs: dict[str, Node]) -> Node:
    """The float network's node whose value `quantize` rounds; casts and requantisation are looked through."""
    node = quantize.args[0]
    assert isinstance(node, Node)
    while node.op != "placeholder" and model.labels.get(node.name) not in nodes:
        node = node.all_input_nodes[0]
    return inputs[node.name] if node.op == "placeholder" else nodes[model.labels[node.name]]


def _key_of(node: Node, labels: dict[str, str]) -> str:
    return f"input {node.name}" if node.op == "placeholder" else labels[node.name]


def _activation(key: str, kind: str, value: Tensor, integers: Tensor, q: QParams, bins: int) -> TensorStats:
    scale, zero = q.step, q.zero
    low, high = scale * (q.qmin - zero), scale * (q.qmax - zero)
    outside = (value < low - scale / 2) | (value > high + scale / 2)
    minimum, maximum, counts = _histogram(value, bins)
    return TensorStats(
        key=key,
        kind=kind,
        role="input" if kind == "input" else "activation",
        shape=tuple(value.shape),
        sqnr_db=sqnr_db(value, dequantize(integers, q)),
        scale=scale,
        zero_point=zero,
        low=low,
        high=high,
        minimum=minimum,
        maximum=maximum,
        clipped=outside.double().mean().item(),
        counts=counts,
    )


def _weights(
    model: QuantizedModel, program: GraphModule, twin: GraphModule, twin_nodes: dict[str, Node], bins: int
) -> list[TensorStats]:
    """Quantized weights, in the program's order."""
    found = []
    for node in program.graph.nodes:
        kind = kind_of(node)
        key = model.labels.get(node.name)
        if kind is None or role_of(kind) != "layer" or key not in twin_nodes:
            continue
        at = weights_of(kind)
        source, original = node.args[at.weight], twin_nodes[key].args[at.weight]
        if not isinstance(source, Node) or source.target not in DEQUANTIZE_WEIGHT:
            continue
        assert isinstance(original, Node)
        value, coded = constant(twin, original), coded_weight(program, source)
        most = coded.grid.reach
        reach = coded.scale.double() * most
        minimum, maximum, counts = _histogram(value, bins)
        outside = value.double().abs() > spread(coded.scale.double() * (most + 0.5), value.shape)
        found.append(
            TensorStats(
                key=key,
                kind=kind,
                role="weight",
                shape=tuple(value.shape),
                sqnr_db=sqnr_db(value, coded.decode()),
                scale=coded.scale.max().item(),
                zero_point=0,
                low=-reach.max().item(),
                high=reach.max().item(),
                minimum=minimum,
                maximum=maximum,
                clipped=outside.double().mean().item(),
                counts=counts,
                channels=(reach.min().item(), reach.median().item(), reach.max().item()),
            )
        )
    return found


def _histogram(value: Tensor, bins: int) -> tuple[float, float, tuple[int, ...]]:
    """Minimum, maximum and counts of the finite elements; a constant tensor has one bin."""
    flat = value.detach().double().flatten()
    flat = flat[torch.isfinite(flat)]
    if flat.numel() == 0:
        return math.nan, math.nan, ()
    low, high = flat.min().item(), flat.max().item()
    if low == high:
        return low, high, (flat.numel(),)
    return low, high, tuple(int(c) for c in torch.histc(flat, bins, low, high).tolist())
