"""From exact integers to int8 in NumPy, by each kernel set's rule; the rules are written from the kernels' sources.

Names are those of the project's simulations, with which this file shares no code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import operators
from operators import CURVES, WEIGHTED, Grid, Ints, Operator, Spec

f32 = np.float32
Rule = Callable[[Ints, float], Ints]
MOVES = ("cat", "max_pool2d", "relu", "slice", "subsample", "permute", "reshape", "pad", "upsample")


def expected(op: Operator, rule: str) -> Ints:
    """The stored int8 values of `op`'s output.

    softmax, sigmoid and tanh are no integer operators: the nearest stored value of the exact result.
    """
    if op.spec.kind in CURVES:
        return stored(np.rint(curve(op) / op.target[0]).astype(np.int64), op.target)
    steps = family(rule)(op, rule)
    return stored(steps, op.target, *bounds(op.spec, op.target, rule))


def stored(steps: Ints, target: Grid, low: int = -128, high: int = 127) -> Ints:
    return np.clip(steps + target[1], low, high)


def bounds(spec: Spec, target: Grid, rule: str) -> tuple[int, int]:
    """Clip bounds as stored integers; XNNPACK adds the zero point before it rounds, half to even."""
    clip = operators.CLIPS[spec.clip][1]
    if clip is None:
        return -128, 127
    scale, zero = target
    if rule.startswith(("xnnpack", "litert_xnnpack")):
        low, high = (int(np.rint(np.clip(f32(b) / f32(scale) + f32(zero), -128, 127))) for b in clip)
        return low, high
    low, high = (127 if math.isinf(b) else math.floor(b / scale + 0.5) + zero for b in clip)
    return max(low, -128), min(high, 127)


def family(rule: str) -> Callable[[Operator, str], Ints]:
    if rule == "tvm":
        return tvm
    return xnnpack if rule.startswith("xnnpack") else litert


# ---------------------------------------------------------------- fixed point


def mantissa(real: float) -> tuple[int, int]:
    """real = value / 2^31 · 2^exponent, value of 31 bits."""
    exponent = math.floor(math.log2(real)) + 1
    value = math.floor(real / 2.0**exponent * 2**31 + 0.5)
    return (value // 2, exponent + 1) if value == 2**31 else (value, exponent)


def high_half(x: Ints, real: float) -> tuple[Ints, int]:
    """x · real to 31 bits, ties upwards, and by how many bits that is still too large."""
    value, exponent = mantissa(real)
    return (x * 2 ** max(exponent, 0) * value + 2**30) // 2**31, max(-exponent, 0)


def away(x: Ints, real: float) -> Ints:
    """Two roundings: ties upwards, then away from zero."""
    high, shift = high_half(x, real)
    return np.sign(high) * ((np.abs(high) + 2**shift // 2) // 2**shift)


def upwards(x: Ints, real: float) -> Ints:
    """Two roundings, ties upwards in both."""
    high, shift = high_half(x, real)
    return (high + 2**shift // 2) // 2**shift


def once(x: Ints, real: float) -> Ints:
    """One rounding, ties upwards."""
    value, exponent = mantissa(real)
    return (x * value + 2 ** (30 - exponent)) // 2 ** (31 - exponent)


def once_away(x: Ints, real: float) -> Ints:
    """One rounding in double, ties away from zero."""
    return np.trunc(x * real + np.copysign(0.5, x)).astype(np.int64)


def shifted_sum(op: Operator) -> Ints:
    """XNNPACK's and TVM's additions: multipliers of 21 bits, one shift, ties upwards."""
    ratios = [f32(scale) / f32(op.target[0]) for scale, _ in op.grids]
    shift = 20 - math.floor(math.log2(max(ratios)))
    first, second = (round(float(r) * 2**shift) for r in ratios)
    a, b = centred(op)
    return (a * first + (-b if op.spec.kind == "sub" else b) * second + 2 ** (shift - 1)) >> shift


# ---------------------------------------------------------------- shared shapes


def centred(op: Operator) -> list[Ints]:
    return [q - zero for q, (_, zero) in zip(op.integers, op.grids, strict=True)]


def channel_axis(op: Operator, sums: Ints) -> int:
    return sums.ndim - 1 if op.spec.kind == "linear" else 1


def per_channel(op: Operator, sums: Ints, rule: Callable[[int], Rule]) -> Ints:
    """`rule(channel)` of each channel's sums and real multiplier (a double)."""
    axis = channel_axis(op, sums)
    reals = [float(f32(op.grids[0][0])) * float(s) / float(f32(op.target[0])) for s in op.scales]
    return np.stack([rule(c)(np.take(sums, c, axis), real) for c, real in enumerate(reals)], axis)


def float_channels(op: Operator, sums: Ints) -> Ints:
    """float32(sum) · float32 multiplier, half to even."""
    scales = f32(op.grids[0][0]) * op.scales / f32(op.target[0])
    shape = [1] * sums.ndim
    shape[channel_axis(op, sums)] = -1
    return np.rint(sums.astype(f32) * scales.reshape(shape)).astype(np.int64)


def ratio(op: Operator) -> f32:
    """Product of the inputs' scales over the output's, in float32 step by step."""
    product = f32(op.grids[0][0])
    for scale, _ in op.grids[1:]:
        product = product * f32(scale)
    return product / f32(op.target[0])


def nearest(x: np.ndarray) -> Ints:
    return np.rint(x).astype(np.int64)


def once_rounded(a: np.ndarray, b: f32, c: np.ndarray) -> np.ndarray:
    """a·b + c rounded once to float32; long double holds the exact value (on x86)."""
    return (a.astype(np.longdouble) * np.longdouble(b) + np.asarray(c, np.longdouble)).astype(f32)


def area(spec: Spec) -> int:
    return spec.kernel[0] * spec.kernel[1]


def curve(op: Operator) -> np.ndarray:
    real = centred(op)[0] * float(op.grids[0][0])
    if op.spec.kind == "softmax":
        powers = np.exp(real - real.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)
    return np.tanh(real) if op.spec.kind == "tanh" else 1 / (1 + np.exp(-real))


# ---------------------------------------------------------------- XNNPACK (ExecuTorch, and LiteRT where it delegates)


def xnnpack(op: Operator, rule: str) -> Ints:
    kind = op.spec.kind
    if kind in ("add", "sub"):
        return shifted_sum(op)
    sums = op.sums()
    if kind in WEIGHTED:
        return float_channels(op, sums)
    if kind == "mul":
        if rule.endswith("_arm"):
            return np.floor(sums * float(ratio(op)) + 0.5).astype(np.int64)
        return nearest(sums.astype(f32) * ratio(op))
    if kind == "mean":
        return averaged(op, rule == "litert_xnnpack_arm")
    if kind == "avg_pool2d":
        return nearest(sums.astype(f32) * (f32(op.grids[0][0]) * (f32(1) / f32(area(op.spec))) / f32(op.target[0])))
    if kind == "requantize":
        return nearest(sums.astype(f32) * f32(op.grids[0][0]) * (f32(1) / f32(op.target[0])))
    assert kind in MOVES, kind
    return sums


def averaged(op: Operator, once: bool) -> Ints:
    """XNNPACK's mean, less the output's zero point."""
    count = op.spec.size[0] * op.spec.size[1]
    total = op.integers[0].sum((2, 3), keepdims=True)
    return affine_mean(total, op.grids[0], op.target, count, fused=once) - op.target[1]


def affine_mean(total: Ints, source: Grid, target: Grid, count: int, *, fused: bool) -> Ints:
    """XNNPACK's mean from the stored integers' sums: scaled, with the zero points as one float32 offset, unclipped.

    fused: each product and sum is rounded once, as by one instruction.
    """
    multiply_add = once_rounded if fused else (lambda a, b, c: (a * b).astype(f32) + c)
    real = f32(source[0]) / f32(target[0]) * (f32(1) / f32(count))
    offset = multiply_add(np.array([-count * source[1]], f32), real, f32(target[1]))
    return nearest(multiply_add(total.astype(f32), real, offset))


# ---------------------------------------------------------------- LiteRT's three kernel sets


def litert(op: Operator, rule: str) -> Ints:
    kind, kernels = op.spec.kind, rule.split("_")[1]
    delegated = kernels == "xnnpack"
    if delegated and kind in (*WEIGHTED, "add", "sub", "mul", "mean"):
        return xnnpack(op, rule)
    vectors: Rule = away if kernels == "reference" else upwards
    if kind in ("add", "sub"):
        return common_scale(op)
    sums = op.sums()
    if kind in WEIGHTED:
        return litert_weighted(op, sums, rule)
    if kind == "mul":
        return away(sums, float(ratio(op)))
    if kind == "matmul":
        (left, _), (right, _) = op.grids
        return away(sums, float(f32(left) * f32(right)) / float(f32(op.target[0])))
    if kind == "mean":
        return litert_mean(op, kernels)
    if kind == "avg_pool2d":
        total = sums + area(op.spec) * op.grids[0][1]
        return np.sign(total) * ((np.abs(total) + area(op.spec) // 2) // area(op.spec)) - op.target[1]
    if kind == "requantize":
        real = float(f32(op.grids[0][0])) / float(f32(op.target[0]))
        if not delegated:
            return vectors(sums, real)
        value, exponent = mantissa(real)
        return (sums * round(float(f32(value * 2.0 ** (exponent - 31))) * 256) + 128) >> 8
    assert kind in MOVES, kind
    return sums


def litert_weighted(op: Operator, sums: Ints, rule: str) -> Ints:
    spec = op.spec
    if rule == "litert_reference":
        return per_channel(op, sums, lambda c: once_away if spec.kind == "linear" else away)
    depthwise = spec.kind in ("conv1d", "conv2d") and spec.groups == spec.channels
    if spec.kind == "conv_transpose2d" or depthwise:  # eight channels at a time in vectors, the rest one by one
        whole = sums.shape[1] // 8 * 8
        return per_channel(op, sums, lambda c: upwards if c < whole else away)
    if spec.groups > 1:
        return per_channel(op, sums, lambda c: away)
    product = once if rule.endswith("_arm") and not one_vector(op, sums) else upwards
    if spec.kind == "linear" and spec.outputs == 1:
        real = float(f32(op.grids[0][0]) * op.scales[0]) / float(f32(op.target[0]))
        return product(sums, real)
    return per_channel(op, sums, lambda c: product)


def one_vector(op: Operator, sums: Ints) -> bool:
    """Whether the product is with a single vector and large enough for code of its own, which rounds twice on Arm too."""
    return sums.size == op.spec.outputs >= 4 and op.weight[0].size >= 8


def common_scale(op: Operator) -> Ints:
    """LiteRT's additions: both sides with twenty more bits on twice the larger scale."""
    (a, b), (s1, s2) = centred(op), (float(f32(s)) for s, _ in op.grids)
    twice = 2 * max(s1, s2)
    left, right = away(a << 20, s1 / twice), away(b << 20, s2 / twice)
    return away(left - right if op.spec.kind == "sub" else left + right, twice / (2**20 * float(f32(op.target[0]))))


def litert_mean(op: Operator, kernels: str) -> Ints:
    """Over height and width, kept: the optimised kernels scale the stored integers' sum, sixteen channels in vectors."""
    (scale, zero), (out, out_zero) = op.grids[0], op.target
    count = op.spec.size[0] * op.spec.size[1]
    if kernels == "builtin":
        raw = op.integers[0].sum((2, 3), keepdims=True)
        bias = out_zero - int(np.round(f32(zero) * f32(scale) / f32(out)))
        real, whole = float(f32(scale) / (f32(count) * f32(out))), raw.shape[1] // 16 * 16
        steps = np.concatenate([upwards(raw[:, :whole], real), away(raw[:, whole:], real)], 1)
        return steps + bias - out_zero
    value, exponent = mantissa(float(f32(scale)) / float(f32(out)))
    bits = min(count.bit_length() - 1, 31 + exponent)
    high = (op.sums() * 2 ** max(exponent - bits, 0) * (value * 2**bits // count) + 2**30) // 2**31
    shift = max(bits - exponent, 0)
    return np.sign(high) * ((np.abs(high) + 2**shift // 2) // 2**shift)


# ---------------------------------------------------------------- TVM


def tvm(op: Operator, rule: str) -> Ints:
    kind = op.spec.kind
    if kind in ("add", "sub"):
        return shifted_sum(op)
    sums = op.sums()
    if kind in WEIGHTED:
        return float_channels(op, sums)
    if kind == "mul":
        return nearest(sums.astype(f32) * ratio(op))
    if kind in ("mean", "avg_pool2d"):
        count = area(op.spec) if kind == "avg_pool2d" else op.spec.size[0] * op.spec.size[1]
        real = f32(np.float64(f32(op.grids[0][0])) / (np.float64(f32(op.target[0])) * count))
        return nearest(sums.astype(f32) * real)
    assert kind in (*MOVES, "requantize"), kind
    return nearest(sums.astype(f32) * (f32(op.grids[0][0]) / f32(op.target[0])))
