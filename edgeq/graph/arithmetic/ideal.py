"""No runtime's rule: exact sums, then one rounding half to even in float64. What the `simulated` target runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeq.graph.arithmetic.kernels import Kernels
from edgeq.graph.arithmetic.sums import accumulate, channels
from edgeq.graph.coded import holds
from edgeq.graph.integer import IntegerOp
from edgeq.graph.kinds import role_of
from edgeq.graph.ops import data_inputs
from edgeq.spec import QParams


def compute(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """The output of `op` on integer `inputs`, every kind and width; torch layout."""
    if role_of(op.kind) == "curve":
        return looked_up(op, inputs[0])
    if role_of(op.kind) == "layer":
        assert op.weight_scale is not None
        unit = op.weight_scale.double() * op.input_qparams[0].step
        total = accumulate(op, inputs[0])
        real = total.double() * channels(op, unit, total.dim())
    else:
        real = apply(op, [dequantize(x, q) for x, q in zip(inputs, op.input_qparams, strict=True)])
    return to_integers(real, op)


def looked_up(op: IntegerOp, x: Tensor) -> Tensor:
    """A curve's output by its table."""
    assert op.entries is not None, f"{op.layer} has a pole"
    out = op.output_qparams
    return op.entries.to(holds(out.qmin, out.qmax))[x.long() - op.input_qparams[0].qmin]


def apply(op: IntegerOp, reals: Sequence[Tensor]) -> Tensor:
    """Run the operator's aten call on dequantized inputs, in their dtype."""
    if op.kind == "requantize":
        return reals[0]
    replaced = dict(zip(data_inputs(op.node, op.kind), reals, strict=False))
    args, kwargs = torch.fx.map_arg((op.node.args, op.node.kwargs), lambda n: replaced[n])
    result: Tensor = op.node.target(*args, **kwargs)  # type: ignore[operator] # an aten overload is callable
    return result


def dequantize(q: Tensor, qparams: QParams) -> Tensor:
    """Integers to float64."""
    return (q.double() - qparams.zero) * qparams.step


def to_integers(real: Tensor, op: IntegerOp) -> Tensor:
    """Round half to even on the output's grid, clipped to the operator's bounds."""
    out = op.output_qparams
    return torch.clamp(torch.round(real / out.step) + out.zero, op.low, op.high).to(holds(out.qmin, out.qmax))


KERNELS = Kernels(compute)
