"""Curves as float operators between a DEQUANTIZE and a QUANTIZE, in whatever order their tensor's axes lie.

Each function here says an aten operator in operators that XNNPACK's delegate computes, so that a curve ends no delegated chain;
what none of them says is left to the islands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgeq.backends.litert.flatbuffer import ModelWriter
from edgeq.graph.curves import smooth
from edgeq.graph.integer import DEQUANTIZE, IntegerOp
from edgeq.graph.ops import clip_bounds, constant, kind_of, node_arg

aten = torch.ops.aten
Operand = int | float  # a float tensor's index is an int, a number is a float


class Chain:
    """Appends the float operators of one curve, all of one stored shape."""

    def __init__(self, writer: ModelWriter, module: GraphModule, name: str, shape: Sequence[int]) -> None:
        self.writer, self.module, self.name, self.shape = writer, module, name, list(shape)
        self.made = 0

    def tensor(self) -> int:
        """A float tensor of the curve's shape."""
        self.made += 1
        return self.writer.tensor(f"{self.name}_curve{self.made}", self.shape, "float32")

    def number(self, x: float) -> int:
        """A constant that stands beside the curve's tensors."""
        return self.writer.constant("numbers", np.full((1,) * max(len(self.shape), 1), x, np.float32))

    def call(self, code: str, *operands: Operand, table: str = "", **options: Any) -> int:
        """One operator; numbers among its operands become constants."""
        inputs = [o if isinstance(o, int) else self.number(o) for o in operands]
        out = self.tensor()
        self.writer.operator(code, inputs, [out], **({"table": table} if table else {}), **options)
        return out

    def add(self, a: Operand, b: Operand) -> int:
        """a + b."""
        return self.call("ADD", a, b, table="AddOptions")

    def sub(self, a: Operand, b: Operand) -> int:
        """a − b."""
        return self.call("SUB", a, b, table="SubOptions")

    def mul(self, a: Operand, b: Operand) -> int:
        """a · b."""
        return self.call("MUL", a, b, table="MulOptions")

    def clamp(self, x: Operand, low: float | None, high: float | None) -> int:
        """x within its bounds, by the operator that has them where one has."""
        names: dict[tuple[float | None, float | None], str] = {
            (0.0, None): "RELU",
            (0.0, 6.0): "RELU6",
            (-1.0, 1.0): "RELU_N1_TO_1",
        }
        if (low, high) in names:
            return self.call(names[low, high], x)
        found = x
        if low is not None:
            found = self.call("MAXIMUM", found, float(low), table="MaximumMinimumOptions")
        if high is not None:
            found = self.call("MINIMUM", found, float(high), table="MaximumMinimumOptions")
        assert isinstance(found, int)
        return found

    def softplus(self, x: Operand, beta: float = 1.0) -> int:
        """log(1 + exp(β·x)) / β without overflow."""
        tail = self.call("EXP", self.mul(self.call("ABS", x), -beta), table="ExpOptions")
        tail = self.call("LOG", self.add(tail, 1.0))
        return self.add(self.call("RELU", x), tail if beta == 1 else self.mul(tail, 1 / beta))


def expressible(op: IntegerOp) -> bool:
    """Whether all of a curve's operators have a form here."""
    return all(node.target in FORMS and smooth(node) for node in members(op))


def members(op: IntegerOp) -> list[Node]:
    """The nodes of a curve, in order."""
    return [n for n in op.node.graph.nodes if n.name in op.absorbed]


def emit(writer: ModelWriter, module: GraphModule, op: IntegerOp, x: int, shape: Sequence[int]) -> int:
    """Append the curve's operators behind float tensor `x` of stored `shape`; returns the tensor of its values."""
    chain = Chain(writer, module, op.name, shape)
    held: dict[Node, int] = {}

    def look(argument: Any) -> Operand:
        if not isinstance(argument, Node):
            return float(argument)
        if argument.op == "get_attr":
            return float(constant(module, argument).reshape(()))
        return x if argument.target is DEQUANTIZE else held[argument]

    for node in members(op):
        held[node] = FORMS[node.target](chain, node, look)
    return held[op.node]


Look = Callable[[Any], Operand]
Form = Callable[[Chain, Node, Look], int]


def _unary(code: str, table: str = "") -> Form:
    return lambda c, node, look: c.call(code, look(node.args[0]), table=table)


def _binary(code: str, table: str) -> Form:
    def form(c: Chain, node: Node, look: Look) -> int:
        return c.call(code, look(node.args[0]), look(node.args[1]), table=table)

    return form


def _rsub(c: Chain, node: Node, look: Look) -> int:
    return c.sub(look(node.args[1]), look(node.args[0]))


def _clip(c: Chain, node: Node, look: Look) -> int:
    return c.clamp(look(node.args[0]), *clip_bounds(node, kind_of(node) or ""))


def _silu(c: Chain, node: Node, look: Look) -> int:
    return c.mul(look(node.args[0]), c.call("LOGISTIC", look(node.args[0])))


def _hardsigmoid(c: Chain, node: Node, look: Look) -> int:
    return c.mul(c.call("RELU6", c.add(look(node.args[0]), 3.0)), 1 / 6)


def _leaky(c: Chain, node: Node, look: Look) -> int:
    slope = float(node_arg(node, 1, 0.01))
    return c.call("LEAKY_RELU", look(node.args[0]), table="LeakyReluOptions", alpha=slope)


def _prelu(c: Chain, node: Node, look: Look) -> int:
    slope = look(node.args[1])
    return c.call("LEAKY_RELU", look(node.args[0]), table="LeakyReluOptions", alpha=float(slope))


def _gelu(c: Chain, node: Node, look: Look) -> int:
    near = node.kwargs.get("approximate", node_arg(node, 1, "none")) == "tanh"
    return c.call("GELU", look(node.args[0]), table="GeluOptions", approximate=near)


def _elu(c: Chain, node: Node, look: Look) -> int:
    return _exponential(c, look(node.args[0]), *(float(node_arg(node, i, 1)) for i in (1, 2, 3)))


def _celu(c: Chain, node: Node, look: Look) -> int:
    alpha = float(node_arg(node, 1, 1.0))
    return _exponential(c, look(node.args[0]), alpha, 1.0, 1 / alpha)


def _selu(c: Chain, node: Node, look: Look) -> int:  # the two numbers of Klambauer et al. 2017, as torch has them
    return _exponential(c, look(node.args[0]), 1.6732632423543772, 1.0507009873554805, 1.0)


def _exponential(c: Chain, x: Operand, alpha: float, scale: float, inside: float) -> int:
    """scale · (max(x, 0) + min(0, α·(exp(inside · x) − 1)))."""
    below = c.clamp(x, None, 0.0)
    below = below if inside == 1 else c.mul(below, inside)
    bent = c.sub(c.call("EXP", below, table="ExpOptions"), 1.0)
    found = c.add(c.call("RELU", x), bent if alpha == 1 else c.mul(bent, alpha))
    return found if scale == 1 else c.mul(found, scale)


def _softplus(c: Chain, node: Node, look: Look) -> int:
    return c.softplus(look(node.args[0]), float(node_arg(node, 1, 1)))


def _log_sigmoid(c: Chain, node: Node, look: Look) -> int:
    return c.mul(c.softplus(c.mul(look(node.args[0]), -1.0)), -1.0)


def _mish(c: Chain, node: Node, look: Look) -> int:
    return c.mul(look(node.args[0]), c.call("TANH", c.softplus(look(node.args[0]))))


def _power(c: Chain, node: Node, look: Look) -> int:
    x, exponent = look(node.args[0]), node.args[1]
    if exponent == 2:
        return c.call("SQUARE", x, table="SquareOptions")
    if exponent == 3:
        return c.mul(c.call("SQUARE", x, table="SquareOptions"), x)
    if exponent == 0.5:
        return c.call("SQRT", x)
    return c.call("POW", x, float(exponent), table="PowOptions")  # type: ignore[arg-type] # a number


def _reciprocal(c: Chain, node: Node, look: Look) -> int:
    return c.call("DIV", 1.0, look(node.args[0]), table="DivOptions")


def _bounded(low: bool) -> Form:
    def form(c: Chain, node: Node, look: Look) -> int:
        code = "MAXIMUM" if low else "MINIMUM"
        return c.call(code, look(node.args[0]), look(node.args[1]), table="MaximumMinimumOptions")

    return form


def _scaled(code: str, factor: float) -> Form:
    return lambda c, node, look: c.mul(c.call(code, look(node.args[0])), factor)


_ADD, _SUB = _binary("ADD", "AddOptions"), _binary("SUB", "SubOptions")
_MUL, _DIV = _binary("MUL", "MulOptions"), _binary("DIV", "DivOptions")
FORMS: Final[dict[Any, Form]] = {
    aten.add.Tensor: _ADD,
    aten.add.Scalar: _ADD,
    aten.sub.Tensor: _SUB,
    aten.sub.Scalar: _SUB,
    aten.rsub.Scalar: _rsub,
    aten.rsub.Tensor: _rsub,
    aten.mul.Tensor: _MUL,
    aten.mul.Scalar: _MUL,
    aten.div.Tensor: _DIV,
    aten.div.Scalar: _DIV,
    aten.relu.default: _clip,
    aten.relu6.default: _clip,
    aten.hardtanh.default: _clip,
    aten.clamp.default: _clip,
    aten.clamp_min.default: _bounded(low=True),
    aten.clamp_max.default: _bounded(low=False),
    aten.maximum.default: _bounded(low=True),
    aten.minimum.default: _bounded(low=False),
    aten.sigmoid.default: _unary("LOGISTIC"),
    aten.tanh.default: _unary("TANH"),
    aten.silu.default: _silu,
    aten.hardswish.default: _unary("HARD_SWISH", "HardSwishOptions"),
    aten.hardsigmoid.default: _hardsigmoid,
    aten.gelu.default: _gelu,
    aten.leaky_relu.default: _leaky,
    aten.prelu.default: _prelu,
    aten.elu.default: _elu,
    aten.celu.default: _celu,
    aten.selu.default: _selu,
    aten.softplus.default: _softplus,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.mish.default: _mish,
    aten.abs.default: _unary("ABS", "AbsOptions"),
    aten.neg.default: _unary("NEG", "NegOptions"),
    aten.square.default: _unary("SQUARE", "SquareOptions"),
    aten.exp.default: _unary("EXP", "ExpOptions"),
    aten.log.default: _unary("LOG"),
    aten.log2.default: _scaled("LOG", 1 / math.log(2)),
    aten.sqrt.default: _unary("SQRT"),
    aten.rsqrt.default: _unary("RSQRT"),
    aten.sin.default: _unary("SIN"),
    aten.cos.default: _unary("COS", "CosOptions"),
    aten.floor.default: _unary("FLOOR"),
    aten.reciprocal.default: _reciprocal,
    aten.pow.Tensor_Scalar: _power,
}
