"""LiteRT's optimised kernels without a delegate: the reference kernels' arithmetic, where vectors round ties upwards.

Their NEON form (on x86 through NEON_2_SSE) shifts with vrshl, which rounds ties towards plus infinity, where the
reference's second rounding goes away from zero. The last elements of a QUANTIZE (fewer than 16) round as the reference
does; that is left out here, so a tie among them is 1 off.
Sources: tflite/kernels/internal/optimized/{neon_check,optimized_ops}.h, optimized/integer_ops/*.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from edgeq.graph.arithmetic import litert_reference as reference
from edgeq.graph.arithmetic.sums import accumulate
from edgeq.graph.integer import IntegerOp
from edgeq.graph.ops import ConvAttrs
from edgeq.spec import EdgeqError

LANES = 8  # channels that the vector code of depthwise and transposed convolution takes at a time


def multiply_upwards(x: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """x · mantissa · 2^(shift − 31) in two roundings, ties upwards in both (vqrdmulhq_s32, then vrshlq_s32)."""
    high = ((x << shift.clamp(min=0)) * mantissa + (1 << 30)) >> 31
    right = (-shift).clamp(min=0)
    return (high + ((torch.ones_like(right) << right) >> 1)) >> right


def compute(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """The int8 output of `op` as LiteRT's optimised kernels compute it; `inputs` are int8 in torch's layout.

    Raises:
        EdgeqError: there is no such kernel.
    """
    kernel = BY_KIND.get(op.kind)
    if kernel is None:
        raise EdgeqError(f"{op.layer}: LiteRT's optimised kernels have no integer {op.kind}; set its layer to fp32")
    return kernel(op, inputs)


def weighted(op: IntegerOp, inputs: Sequence[Tensor], product: reference.Rule = multiply_upwards) -> Tensor:
    """CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV; `product` rescales what ruy computes, the library of matrix products.

    A CONV_2D with groups runs the reference kernel. The depthwise and transposed kernels take eight channels at a time
    in vectors and the rest one by one, as the reference does (Quantize in optimized_ops.h, depthwise_conv.h).
    """
    attrs = op.attrs
    assert isinstance(attrs, ConvAttrs) and op.weight is not None
    depthwise = op.weight.shape[1] == 1 and attrs.groups == inputs[0].shape[1]
    transposed = op.kind == "conv_transpose2d"
    if not transposed and attrs.groups != 1 and not depthwise:
        return reference.weighted(op, inputs)
    sums = accumulate(op, inputs[0])
    upwards = reference.scaled_channels(op, sums, multiply_upwards if depthwise or transposed else product)
    if depthwise or transposed:
        whole = sums.shape[1] // LANES * LANES
        upwards[:, whole:] = reference.scaled_channels(op, sums)[:, whole:]
    return reference.finish(op, upwards)


def linear(op: IntegerOp, inputs: Sequence[Tensor], product: reference.Rule = multiply_upwards) -> Tensor:
    """FULLY_CONNECTED, by ruy. A single output channel counts as per tensor, where the product of the scales is rounded to
    float32 (GetQuantizedConvolutionMultipler in kernels/kernel_util.cc)."""
    sums = accumulate(op, inputs[0])
    assert op.weight_scale is not None
    if op.weight_scale.numel() > 1:
        return reference.finish(op, reference.scaled_channels(op, sums, product))
    source, target = np.float32(op.input_qparams[0].step), float(np.float32(op.output_qparams.step))
    real = float(source * op.weight_scale.numpy()[0]) / target
    return reference.finish(op, reference.scaled(sums, real, product))


def mean(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """MEAN. Over height and width of four axes that are kept there is a kernel of its own: the stored integers' sum is
    scaled by a float32 ratio, sixteen channels at a time in vectors, and the zero points come in as one rounded bias
    (optimized/integer_ops/mean.h)."""
    x, out = inputs[0], op.output_qparams
    sums, count = reference.summed(op, x.long())
    if x.dim() != 4 or sums.shape != (*x.shape[:2], 1, 1):
        return reference.mean(op, inputs)
    source, target = np.float32(op.input_qparams[0].step), np.float32(out.step)
    bias = out.zero - int(np.round(np.float32(op.input_qparams[0].zero) * source / target))
    ratio, whole = float(source / (np.float32(count) * target)), sums.shape[1] // 16 * 16
    steps = reference.scaled(sums, ratio, multiply_upwards)
    steps[:, whole:] = reference.scaled(sums[:, whole:], ratio)
    return torch.clamp(steps + bias, op.low, op.high).to(torch.int8)


BY_KIND: dict[str, reference.Kernel] = {
    **reference.BY_KIND,
    "conv1d": weighted,
    "conv2d": weighted,
    "depthwise_conv2d": weighted,
    "conv_transpose2d": weighted,
    "linear": linear,
    "mean": mean,
    **reference.rescaling(multiply_upwards),
}


KERNELS = replace(reference.KERNELS, compute=compute)
