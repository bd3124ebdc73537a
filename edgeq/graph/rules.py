"""What a legal program is: a list of rules, run after it was made, after it was read, and before a runtime gets it.

Each rule yields a sentence for whatever breaks it, which begins with where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import getitem
from typing import Final

import torch
from torch.fx import Node

from edgeq.graph.coded import holds
from edgeq.graph.integer import DEQUANTIZE, DEQUANTIZE_WEIGHT, QUANTIZE, IntegerProgram, coded_weight, tensor_qparams
from edgeq.graph.kinds import role_of, weights_of
from edgeq.graph.numbers import bias_limit, wrong_grid
from edgeq.graph.ops import aten_name, kind_of
from edgeq.spec import EdgeqError, Precision, QParams, Target, precision

BETWEEN: Final = (getitem, torch.ops.aten._to_copy.default)  # float operators that may be nobody's layer


class IllegalProgram(RuntimeError):
    """A program that edgeq made breaks a rule: a fault in edgeq, not in the network."""


@dataclass(frozen=True, slots=True)
class Said:
    """What is said about a program beside it.

    plan: layer key → precision name. islands: layer key → why it stays in float. labels: node name → layer key.
    """

    plan: Mapping[str, str]
    islands: Mapping[str, str]
    labels: Mapping[str, str]

    def where(self, node: Node) -> str:
        """A node as people know it."""
        return f"layer {self.labels[node.name]!r}" if node.name in self.labels else f"{node.name}"

    def wanted(self, key: str) -> Precision:
        """What the plan asks of a layer; what it does not name stays in float."""
        return precision(self.plan.get(key, "fp32"))


def grids(program: IntegerProgram, said: Said) -> Iterator[str]:
    """Scales are positive float32, zero points lie on their grid, and the integers' type holds both ends of it."""
    for node in program.module.graph.nodes:
        if node.target in (QUANTIZE, DEQUANTIZE):
            q, dtype = tensor_qparams(node), node.args[5]
            if wrong := wrong_grid(q):
                yield f"{said.where(node)}: {wrong}"
            elif holds(q.qmin, q.qmax) != dtype:
                yield f"{said.where(node)}: integers from {q.qmin} to {q.qmax} as {dtype}"


def edges(program: IntegerProgram, said: Said) -> Iterator[str]:
    """Integers are read with the numbers that they were made with."""
    for node in program.module.graph.nodes:
        if node.target is not DEQUANTIZE:
            continue
        (source,) = node.all_input_nodes
        if source.target is QUANTIZE and source.args[1:] != node.args[1:]:
            yield f"{said.where(source)}: quantized with {_numbers(source)} and read with {_numbers(node)}"
        elif source.target is not QUANTIZE and source.op != "placeholder":
            yield f"{said.where(source)}: read as integers, which nothing quantizes"


def weights(program: IntegerProgram, said: Said) -> Iterator[str]:
    """Codes lie on their grid, with positive scales that divide them."""
    for node in program.module.graph.nodes:
        if node.target in DEQUANTIZE_WEIGHT:
            where = said.where(next(iter(node.users), node))
            try:
                coded = coded_weight(program.module, node)
            except ValueError as error:
                yield f"{where}: weights have {error}"
                continue
            if not bool((coded.scale.isfinite() & (coded.scale > 0)).all()):
                yield f"{where}: a weight's scale is not positive"


def biases(program: IntegerProgram, said: Said) -> Iterator[str]:
    """A bias is an integer that float32 can name, on the grid of its layer's sums."""
    for op in program.ops.values():
        if op.bias is not None and op.bias.numel() and int(op.bias.abs().max()) > bias_limit(op.input_qparams[0]):
            yield f"layer {op.layer!r}: its bias is {int(op.bias.abs().max())} steps, more than is exact"


def stated(program: IntegerProgram, said: Said) -> Iterator[str]:
    """What computes in integers was planned so, and what does not is a stated island: nothing is silently float."""
    for op in program.ops.values():
        if op.layer in said.plan and said.wanted(op.layer).activation is None:
            yield f"layer {op.layer!r}: computes in integers, which its plan does not ask for"
    for node in program.floats:
        key = said.labels.get(node.name)
        if key is None:
            if node.target not in BETWEEN:
                yield f"{node.name}: {aten_name(node)} computes in float and belongs to no layer"
        elif key not in said.islands:
            wanted = said.wanted(key)
            if wanted.activation is not None:
                yield f"layer {key!r}: computes in float, and nothing says why"
            elif wanted.weight is not None and not _coded(node):
                yield f"layer {key!r}: its weights are float, where the plan asks for {wanted.name}"


RULES: Final[tuple[Callable[[IntegerProgram, Said], Iterator[str]], ...]] = (grids, edges, weights, biases, stated)


def broken(program: IntegerProgram, said: Said) -> str | None:
    """The first thing that breaks a rule; None where nothing does."""
    return next((found for rule in RULES for found in rule(program, said)), None)


def refuse_beyond(program: IntegerProgram, said: Said, target: Target, name: str) -> None:
    """What a runtime takes: kinds in the precisions that the plan asks for, whichever target it was planned for.

    Raises:
        EdgeqError: backend `name` does not compute a layer so.
    """
    kinds: dict[str, str | None] = {op.layer: op.kind for op in program.ops.values() if op.kind != "requantize"}
    kinds |= {said.labels[n.name]: kind_of(n) for n in program.floats if n.name in said.labels}
    for key, kind in kinds.items():
        wanted = said.wanted(key)
        if key in said.islands or wanted.name == "fp32" or target.takes(kind, wanted) is not None:
            continue
        row = target.support(kind)
        raise EdgeqError(
            f"{name} cannot compute layer {key!r} in {wanted.name}: its kernels take "
            f"{', '.join(row.precisions) if row else 'this operator in float only'}; "
            f"quantize with --target {name} or portable, or change the layer in plan.json"
        )


def _coded(node: Node) -> bool:
    """Whether an operator's weights are integers behind a dequantize."""
    kind = kind_of(node)
    if role_of(kind) != "layer":
        return False
    weight = node.args[weights_of(kind).weight]
    return isinstance(weight, Node) and weight.target in DEQUANTIZE_WEIGHT


def _numbers(node: Node) -> str:
    q: QParams = tensor_qparams(node)
    return f"scale {q.step:.6g}, zero point {q.zero}"
