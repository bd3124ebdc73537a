"""LiteRT's reference kernels, byte for byte: fixed-point multipliers with gemmlowp's double rounding.

Sources: tflite/kernels/internal/{common.cc,quantization_util.cc,reference/**}, tflite/kernels/<operator>.cc.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeq.graph.arithmetic.kernels import Kernels
from edgeq.graph.arithmetic.sums import accumulate, channels
from edgeq.graph.integer import IntegerOp
from edgeq.graph.kinds import named
from edgeq.graph.ops import clip_bounds, data_inputs, node_arg
from edgeq.spec import EdgeqError, QParams

FIXED_OUTPUT = {
    "softmax": QParams((1 / 256,), (-128,)),
    "sigmoid": QParams((1 / 256,), (-128,)),
    "tanh": QParams((1 / 128,), (0,)),
}
MISSING = frozenset({"curve"})  # computed in float, though between integers
LIMITED = {  # kind → what its operator cannot say (edgeq.graph.limits), so that it is an island between integers
    "avg_pool2d": "litert_average",
    "max_pool2d": "litert_max_pool",
    "pad": "litert_pad",
    "slice": "litert_slice",
    "upsample_nearest": "xnnpack_upsample",
}
ADD_SHIFT = 20  # bits that add.cc and sub.cc gain before they rescale


Rule = Callable[[Tensor, Tensor, Tensor], Tensor]  # (int64 x, mantissa, shift) → x · mantissa · 2^(shift − 31)

# ---------------------------------------------------------------- fixed point


def quantize_multiplier(real: float) -> tuple[int, int]:
    """`real` as mantissa · 2^(shift − 31) with a mantissa in [2^30, 2^31) (QuantizeMultiplier)."""
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    mantissa = math.floor(fraction * (1 << 31) + 0.5)
    if mantissa == 1 << 31:
        mantissa, shift = mantissa // 2, shift + 1
    return (0, 0) if shift < -31 else (mantissa, shift)


def doubling_high_mul(a: Tensor, b: Tensor) -> Tensor:
    """round(a·b / 2^31), ties upwards, saturated (gemmlowp's SaturatingRoundingDoublingHighMul)."""
    product = a * b
    nudged = product + torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    return torch.clamp(torch.div(nudged, 1 << 31, rounding_mode="trunc"), max=(1 << 31) - 1)


def rounding_shift(x: Tensor, exponent: Tensor) -> Tensor:
    """round(x / 2^exponent), half away from zero (gemmlowp's RoundingDivideByPOT)."""
    mask = (torch.ones_like(exponent) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


def multiply(x: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """MultiplyByQuantizedMultiplier in this build: two roundings, ties upwards, then away from zero."""
    return rounding_shift(doubling_high_mul(x << shift.clamp(min=0), mantissa), (-shift).clamp(min=0))


def scaled(x: Tensor, real: float, rule: Rule = multiply) -> Tensor:
    """x · real for one real multiplier."""
    mantissa, shift = quantize_multiplier(real)
    return rule(x, torch.tensor(mantissa), torch.tensor(shift))


def scaled_channels(op: IntegerOp, sums: Tensor, rule: Rule = multiply) -> Tensor:
    """Sums of a weighted operator in units of the output scale, one multiplier a channel."""
    pairs = [quantize_multiplier(m) for m in multipliers(op)]
    mantissa, shift = (torch.tensor([p[i] for p in pairs]) for i in (0, 1))
    return rule(sums, channels(op, mantissa, sums.dim()), channels(op, shift, sums.dim()))


def multipliers(op: IntegerOp) -> list[float]:
    """input scale · weight scale / output scale, in double."""
    assert op.weight_scale is not None
    source, target = float(_f32(op.input_qparams[0])), float(_f32(op.output_qparams))
    return [source * float(w) / target for w in op.weight_scale.numpy()]


# ---------------------------------------------------------------- operators


def compute(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """The int8 output of `op` as LiteRT's reference kernels compute it; `inputs` are int8 in torch's layout.

    Raises:
        EdgeqError: there is no such kernel.
    """
    kernel = BY_KIND.get(op.kind)
    if kernel is None:
        raise EdgeqError(f"{op.layer}: LiteRT's reference kernels have no integer {op.kind}; set its layer to fp32")
    return kernel(op, inputs)


def quantize(x: Tensor, qparams: QParams) -> Tensor:
    """QUANTIZE from float: round half away from zero of x / scale in float32, plus zero point (AffineQuantize)."""
    ratio = x.to(torch.float32) / torch.tensor(qparams.step, dtype=torch.float32)
    rounded = torch.sign(ratio) * torch.floor(ratio.abs().double() + 0.5)
    return torch.clamp(rounded + qparams.zero, qparams.qmin, qparams.qmax).to(torch.int8)


def finish(op: IntegerOp, x: Tensor) -> Tensor:
    """Add the output's zero point and clip."""
    return torch.clamp(x + op.output_qparams.zero, op.low, op.high).to(torch.int8)


def requantized(x: Tensor, source: QParams, target: QParams, rule: Rule = multiply) -> Tensor:
    """QUANTIZE from int8 to int8 with other numbers, as int8."""
    if _f32(source) == _f32(target) and source.zero_point == target.zero_point:
        return x
    moved = scaled(x.long() - source.zero, float(_f32(source)) / float(_f32(target)), rule)
    return torch.clamp(moved + target.zero, -128, 127).to(torch.int8)


def applied(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """op's own aten operator on `inputs` in place of its data inputs."""
    table = dict(zip(data_inputs(op.node, op.kind), inputs, strict=True))
    args, kwargs = torch.fx.map_arg((op.node.args, op.node.kwargs), lambda n: table[n])
    result: Tensor = op.node.target(*args, **kwargs)  # type: ignore[operator] # an aten operator
    return result


def weighted(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV."""
    return finish(op, scaled_channels(op, accumulate(op, inputs[0])))


def linear(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """FULLY_CONNECTED multiplies in double, half away from zero (integer_ops/fully_connected.h)."""
    sums = accumulate(op, inputs[0])
    real = sums.double() * channels(op, torch.tensor(multipliers(op), dtype=torch.float64), sums.dim())
    return finish(op, (torch.sign(real) * torch.floor(real.abs() + 0.5)).long())


def add(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """ADD and SUB: both operands on a common scale with 20 more bits (kernels/add.cc, sub.cc)."""
    a, b = (_f32(q) for q in op.input_qparams)
    twice = float(2 * max(a, b))
    left, right = (
        scaled((x.long() - q.zero) << ADD_SHIFT, float(_f32(q)) / twice)
        for x, q in zip(inputs, op.input_qparams, strict=True)
    )
    total = left + right if op.kind == "add" else left - right
    return finish(op, scaled(total, twice / float((1 << ADD_SHIFT) * _f32(op.output_qparams))))


def mul(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """MUL: the product of the scales is rounded to float32 (kernels/mul.cc)."""
    a, b = (x.long() - q.zero for x, q in zip(inputs, op.input_qparams, strict=True))
    real = float(_f32(op.input_qparams[0]) * _f32(op.input_qparams[1]) / _f32(op.output_qparams))
    return finish(op, scaled(a * b, real))


def matmul(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """BATCH_MATMUL: exact sums, one multiplier from a float32 product of scales (kernels/batch_matmul.cc)."""
    a, b = (x.double() - q.zero for x, q in zip(inputs, op.input_qparams, strict=True))
    real = float(_f32(op.input_qparams[0]) * _f32(op.input_qparams[1])) / float(_f32(op.output_qparams))
    return finish(op, scaled((a @ b).long(), real))


def mean(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """MEAN: 1/count goes into the mantissa by integer division (QuantizedMeanOrSum in reference/reduce.h)."""
    x = inputs[0]
    total, count = summed(op, x.long() - op.input_qparams[0].zero)
    mantissa, shift = quantize_multiplier(float(_f32(op.input_qparams[0])) / float(_f32(op.output_qparams)))
    bits = min(count.bit_length() - 1, 32, 31 + shift)
    return finish(op, multiply(total, torch.tensor((mantissa << bits) // count), torch.tensor(shift - bits)))


def summed(op: IntegerOp, x: Tensor) -> tuple[Tensor, int]:
    """Sums over the axes that a mean operator reduces, and how many elements each has."""
    if op.node.target is torch.ops.aten.adaptive_avg_pool2d.default:
        axes, keep = [x.dim() - 2, x.dim() - 1], True
    else:
        raw: Any = node_arg(op.node, 1, None)
        axes, keep = list(raw) if raw else list(range(x.dim())), bool(node_arg(op.node, 2, False))
    return x.sum(axes, keepdim=keep), math.prod(x.shape[a] for a in axes)


def avg_pool(op: IntegerOp, inputs: Sequence[Tensor], rule: Rule) -> Tensor:
    """AVERAGE_POOL_2D: the stored integers' mean, half away from zero, zero point and all (integer_ops/pooling.h)."""
    zero_point = op.input_qparams[0].zero
    kernel, stride, padding, _, counted = _pool_geometry(op)
    ones = torch.ones_like(inputs[0][:1, :1], dtype=torch.float64)
    shifted = torch.nn.functional.pad(inputs[0].double() - zero_point, (padding[1],) * 2 + (padding[0],) * 2)
    valid = torch.nn.functional.pad(ones, (padding[1],) * 2 + (padding[0],) * 2, value=float(counted))
    area = kernel[0] * kernel[1]
    count = torch.round(torch.nn.functional.avg_pool2d(valid, kernel, stride) * area).long()
    total = torch.round(torch.nn.functional.avg_pool2d(shifted, kernel, stride) * area).long() + zero_point * count
    half = torch.div(count, 2, rounding_mode="floor")
    rounded = torch.div(torch.where(total > 0, total + half, total - half), count, rounding_mode="trunc")
    pooled = torch.clamp(rounded, -128, 127).to(torch.int8)
    return torch.clamp(requantized(pooled, op.input_qparams[0], op.output_qparams, rule), op.low, op.high)


def max_pool(op: IntegerOp, inputs: Sequence[Tensor], rule: Rule) -> Tensor:
    """MAX_POOL_2D."""
    pooled = applied(op, [inputs[0].float()]).to(torch.int8)
    return torch.clamp(requantized(pooled, op.input_qparams[0], op.output_qparams, rule), op.low, op.high)


def activation(op: IntegerOp, inputs: Sequence[Tensor], rule: Rule = multiply) -> Tensor:
    """RELU and RELU6 rescale by a float32 ratio (kernels/activations.cc); other bounds are QUANTIZE and a clip."""
    source, target = op.input_qparams[0], op.output_qparams
    x = inputs[0]
    if op.kind == "clamp" and clip_bounds(op.node, op.kind) not in ((0.0, None), (0.0, 6.0)):
        return torch.clamp(requantized(x, source, target, rule), op.low, op.high)
    return finish(op, scaled(x.long() - source.zero, float(_f32(source) / _f32(target))))


def move(op: IntegerOp, inputs: Sequence[Tensor], rule: Rule) -> Tensor:
    """Data movement; what pads is the zero point."""
    zero_point = op.input_qparams[0].zero
    moved = applied(op, [inputs[0].float() - zero_point]) + zero_point
    return torch.clamp(requantized(moved.to(torch.int8), op.input_qparams[0], op.output_qparams, rule), op.low, op.high)


def cat(op: IntegerOp, inputs: Sequence[Tensor], rule: Rule) -> Tensor:
    """CONCATENATION behind a QUANTIZE of every part whose numbers differ."""
    parts = [requantized(x, q, op.output_qparams, rule) for x, q in zip(inputs, op.input_qparams, strict=True)]
    return torch.clamp(torch.cat(parts, int(node_arg(op.node, 1, 0))), op.low, op.high)


def requantize(op: IntegerOp, inputs: Sequence[Tensor], rule: Rule) -> Tensor:
    """QUANTIZE from int8 to int8."""
    return requantized(inputs[0], op.input_qparams[0], op.output_qparams, rule)


def table(op: IntegerOp, inputs: Sequence[Tensor], rule: Rule) -> Tensor:
    """LOGISTIC and TANH: a table of 256 float32 results (LUTPopulate in internal/common.h)."""
    source, fixed = op.input_qparams[0], FIXED_OUTPUT[op.kind]
    real = _f32(source) * (np.arange(-128, 128, dtype=np.int64) - source.zero).astype(np.float32)
    curve = np.float32(1) / (np.float32(1) + np.exp(-real)) if op.kind == "sigmoid" else np.tanh(real)
    scaled_up = curve.astype(np.float32) * (np.float32(1) / _f32(fixed))
    rounded = np.copysign(np.floor(np.abs(scaled_up.astype(np.float64)) + 0.5), scaled_up).astype(np.int64)
    entries = torch.from_numpy(np.clip(rounded + fixed.zero, -128, 127).astype(np.int8))
    return torch.clamp(requantized(entries[inputs[0].long() + 128], fixed, op.output_qparams, rule), op.low, op.high)


def softmax(op: IntegerOp, inputs: Sequence[Tensor], rule: Rule) -> Tensor:
    """SOFTMAX: float32 table of exp, summed in order, times 1 / (sum · 1/256) (optimized_ops.h).

    The optimised kernel, except on Arm. The reference's own is in fixed point and 1 off in some ten of a million elements.
    """
    fixed = FIXED_OUTPUT["softmax"]
    axis = int(op.node.args[1])  # type: ignore[arg-type] # an int
    x = inputs[0].movedim(axis, -1).numpy().astype(np.int64)
    entries = np.exp(-_f32(op.input_qparams[0]) * np.arange(256, dtype=np.float32)).astype(np.float32)
    powers = entries[x.max(-1, keepdims=True) - x]
    total = np.add.accumulate(powers, axis=-1, dtype=np.float32)[..., -1:]
    shares = powers * (np.float32(1) / (total * _f32(fixed)))
    rounded = np.floor(shares.astype(np.float64) + 0.5).astype(np.int64)
    out = torch.from_numpy(np.clip(rounded + fixed.zero, -128, 127).astype(np.int8)).movedim(-1, axis)
    return torch.clamp(requantized(out.contiguous(), fixed, op.output_qparams, rule), op.low, op.high)


def _pool_geometry(op: IntegerOp) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], bool, bool]:
    """kernel, stride, padding, ceil_mode, count_include_pad of an average pool."""
    kernel = _pair(op.node.args[1])
    stride = _pair(node_arg(op.node, 2, None) or kernel)
    return (
        kernel,
        stride,
        _pair(node_arg(op.node, 3, 0)),
        bool(node_arg(op.node, 4, False)),
        bool(node_arg(op.node, 5, True)),
    )


def _pair(raw: Any) -> tuple[int, int]:
    items = [int(i) for i in raw] if isinstance(raw, (list, tuple)) else [int(raw)]
    return (items[0], items[-1])


def _f32(qparams: QParams) -> np.float32:
    return np.float32(qparams.step)


Kernel = Callable[[IntegerOp, Sequence[Tensor]], Tensor]


def rescaling(rule: Rule) -> dict[str, Kernel]:
    """The kernels that bring int8 values to other numbers by `rule`, where the program has them."""
    kernels: dict[str, Callable[..., Tensor]] = {
        "avg_pool2d": avg_pool,
        "max_pool2d": max_pool,
        "clamp": activation,
        "cat": cat,
        "requantize": requantize,
        "softmax": softmax,
        "sigmoid": table,
        "tanh": table,
        **dict.fromkeys(named("move"), move),
    }
    return {kind: partial(kernel, rule=rule) for kind, kernel in kernels.items()}


BY_KIND: dict[str, Kernel] = {
    "conv1d": weighted,
    "conv2d": weighted,
    "depthwise_conv2d": weighted,
    "conv_transpose2d": weighted,
    "linear": linear,
    "add": add,
    "sub": add,
    "mul": mul,
    "matmul": matmul,
    "mean": mean,
    "relu": activation,
    "relu6": activation,
    **rescaling(multiply),
}


KERNELS = Kernels(compute, MISSING, LIMITED, quantize)
