"""Core ML's rule: dequantise, operate in float, quantise with ties to even; MIL requantises nothing in integers.

`quantize` in MIL is clip(round(x / scale) + zero_point) (coremltools, ops/defs/iOS17/quantization_ops.py), with NumPy's
rounding where coremltools folds constants. What a device does inside its kernels Apple does not document.

A float16 package (`half`, see coreml_fp16) stores its scales and biases in half precision where they fit, so the
integers mean other numbers; they are computed here as wide as in a float32 package, which Core ML may always do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from edgeq.graph.arithmetic.kernels import Kernels
from edgeq.graph.integer import QUANTIZE, IntegerOp
from edgeq.graph.kinds import weights_of
from edgeq.graph.ops import ConvAttrs, clip_bounds, data_inputs, kind_of
from edgeq.spec import EdgeqError, QParams

MISSING = frozenset({"curve"})  # several operators in float, though between integers
# an operator with a finite constant beyond LARGEST stays in float32 (coremltools, fp16_overflow in passes/defs/quantization.py)
LARGEST, INFINITE = 65504.0, 1e38
# constants of fewer elements never become zero (_check_underflow_to_zero there)
SMALLEST, RAISED = 2.0**-24, 400


def compute(op: IntegerOp, inputs: Sequence[Tensor], *, half: bool = False) -> Tensor:
    """One operator, int8 in and int8 out, layouts as in torch.

    Weighted kinds multiply dequantised float32 values as the MIL program says, summed in double and rounded once, not
    exact integer sums: the two round apart where a sum lies within about 1e-4 of a step beside a tie (18 of some 6
    million elements of an EfficientNet-Lite0), and behind one such element a deep network's outputs part by several
    steps. What order a device sums in Apple does not say.

    Raises:
        EdgeqError: the operator reads something that is neither quantized nor constant.
    """
    real = weighted(op, inputs[0], half=half) if op.weight is not None else float_reference(op, inputs, half=half)
    return quantize(_activation(op, real), op.output_qparams, half=half)


def weighted(op: IntegerOp, x: Tensor, *, half: bool = False) -> Tensor:
    """Convolution or matrix product of the dequantised input and weights, float32, before its activation."""
    assert op.weight is not None and op.weight_scale is not None
    wide = torch.float64 if op.attrs is None or op.attrs.groups == 1 else torch.float32  # as the interpreter sums
    real = dequantize(x, op.input_qparams[0], half=half).to(wide)
    along = [1] * op.weight.dim()
    along[weights_of(op.kind).axis] = -1
    weight = (op.weight.float() * stored(op.weight_scale, half).view(along)).to(wide)
    bias = None
    if op.bias is not None:
        bias = stored((op.bias.double() * op.weight_scale.double() * op.input_qparams[0].step).float(), half).to(wide)
    if op.kind == "linear":
        return F.linear(real, weight, bias).float()
    a = op.attrs
    assert isinstance(a, ConvAttrs)
    if op.kind == "conv_transpose2d":
        assert a.output_padding is not None
        spread = F.conv_transpose2d(real, weight, bias, a.stride, a.padding, a.output_padding, a.groups, a.dilation)
        return spread.float()
    convolve = F.conv1d if op.kind == "conv1d" else F.conv2d
    return convolve(real, weight, bias, a.stride, a.padding, a.dilation, a.groups).float()


def float_reference(op: IntegerOp, inputs: Sequence[Tensor], *, half: bool = False) -> Tensor:
    """`op.node`'s own aten call on the dequantised inputs, float32, before its activation.

    Data movement comes through exact: a dequantised integer always quantises back to itself.
    """
    wide = torch.float64 if op.kind in ("mean", "avg_pool2d", "matmul") else torch.float32  # sums: rounded once
    reals = [dequantize(x, q, half=half).to(wide) for x, q in zip(inputs, op.input_qparams, strict=True)]
    if op.kind == "requantize":
        return reals[0]
    sources = iter(reals)
    nodes = set(data_inputs(op.node, op.kind))

    def argument(node: Node) -> Any:
        if node in nodes:
            return next(sources)
        raise EdgeqError(f"{op.layer}: {op.kind} reads {node.name}, which is not quantized; keep this layer in fp32")

    args = torch.fx.node.map_arg(op.node.args, argument)
    kwargs = torch.fx.node.map_arg(op.node.kwargs, argument)
    assert callable(op.node.target)
    result = op.node.target(*args, **kwargs)
    assert isinstance(result, Tensor)
    return result.float()


def dequantize(q: Tensor, qparams: QParams, *, half: bool = False) -> Tensor:
    """scale · (q - zero point) in float32."""
    return (q.to(torch.float32) - qparams.zero) * stored(qparams.step, half)


def quantize(real: Tensor, qparams: QParams, *, half: bool = False) -> Tensor:
    """clip(round to even(real / scale) + zero point), int8; the division rounds to float32."""
    steps = torch.round(real / stored(qparams.step, half)) + qparams.zero
    return steps.clamp(qparams.qmin, qparams.qmax).to(torch.int8)


def stored(constant: Tensor | float, half: bool) -> Tensor:
    """A float constant as the package stores it, as float32: one too large for half precision as it is, one too small for
    it as the smallest that there is."""
    value = torch.as_tensor(constant, dtype=torch.float32)
    if not half or bool((value.abs() > LARGEST).logical_and(value.abs() < INFINITE).any()):
        return value
    rounded = value.to(torch.float16).to(torch.float32)
    if value.numel() < RAISED:
        rounded = torch.where((rounded.abs() <= SMALLEST) & (value != 0), SMALLEST * value.sign(), rounded)
    return rounded


def _activation(op: IntegerOp, real: Tensor) -> Tensor:
    """The activation that stands between the operator and its quantize, in float."""
    after = next(iter(op.node.users))
    if op.kind == "requantize" or after.target is QUANTIZE:
        return real
    kind = kind_of(after)
    assert kind is not None
    low, high = clip_bounds(after, kind)
    return real.clamp(low, high)


KERNELS = Kernels(compute, MISSING, quantize=quantize)
