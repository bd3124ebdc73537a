"""XNNPACK's int8 kernels, byte for byte: what ExecuTorch runs, and LiteRT where it delegates to XNNPACK.

Sources: XNNPACK src/microparams-init.c, src/xnnpack/requantization.h, src/operators/{convolution-nhwc,reduce-nd}.c,
src/reference/unary-elementwise.cc; checked against the runtime in executorch 1.5.1 on x86-64 (AVX2).
Sums, additions and subtractions are the same on every instruction set. Two rules are not pinned by XNNPACK: `mul` is
another on Arm (`xnnpack_arm`), and `mean` on a compiler that contracts a·b + c rounds some ties the other way
(`litert_xnnpack_arm`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from edgeq.graph.arithmetic.ideal import apply
from edgeq.graph.arithmetic.kernels import Kernels
from edgeq.graph.arithmetic.sums import accumulate, channels
from edgeq.graph.integer import IntegerOp
from edgeq.graph.kinds import role_of
from edgeq.graph.ops import clip_bounds, kind_of
from edgeq.spec import EdgeqError, QParams

MISSING = frozenset({"softmax", "sigmoid", "tanh", "curve", "matmul"})  # computed in float, though between integers
LIMITED = {"avg_pool2d": "xnnpack_average"}  # kind → what its rewrite cannot say (edgeq.graph.limits)
ADD_BITS = 20  # bits of the larger multiplier of an addition


def compute(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """The int8 output of `op` on int8 `inputs` in torch layout.

    Raises:
        EdgeqError: XNNPACK has no int8 kernel of this kind.
    """
    if role_of(op.kind) == "layer":
        assert op.weight_scale is not None
        total = accumulate(op, inputs[0])
        scale = _f32(op.input_qparams[0].step) * op.weight_scale / _f32(op.output_qparams.step)
        return _requantize(op, total, channels(op, scale, total.dim()))
    if op.kind in ("add", "sub"):
        return _add(op, *inputs)
    if op.kind == "mul":
        a, b = (_centred(x, q) for x, q in zip(inputs, op.input_qparams, strict=True))
        left, right = (_f32(q.step) for q in op.input_qparams)
        return _requantize(op, a * b, left * right / _f32(op.output_qparams.step))
    if op.kind == "mean":
        return mean(op, inputs[0])
    if op.kind == "avg_pool2d":
        return _average_pool(op, inputs[0])
    if op.kind == "requantize":
        return _clip(op, _converted(inputs[0], op.input_qparams[0], op.output_qparams))
    if role_of(op.kind) == "move" or op.kind in ("cat", "max_pool2d"):
        out = op.output_qparams
        same = [_converted(x, q, out) for x, q in zip(inputs, op.input_qparams, strict=True)]
        return _clip(op, apply(op, [_centred(x, out).double() for x in same]) + out.zero)
    if role_of(op.kind) == "clip":
        return _clip(op, _converted(inputs[0], op.input_qparams[0], op.output_qparams))
    raise EdgeqError(f"{op.layer}: XNNPACK has no int8 kernel for {op.kind}; keep it in fp32")


def bounds(op: IntegerOp) -> tuple[int, int]:
    """Clip bounds on the output's integers: bound / scale + zero point in float32, half to even (xnn_qs8_quantize).

    The zero point is added before rounding, so a tie falls otherwise than in TFLite: 6.0 at scale 4 and zero point 47
    is 49 there and 48 here.
    """
    out = op.output_qparams
    node = op.node if role_of(op.kind) == "clip" else next(iter(op.node.users))
    kind = kind_of(node)
    if kind is None or role_of(kind) != "clip":
        return out.qmin, out.qmax
    low, high = clip_bounds(node, kind)
    scale, zero_point = _f32(out.step), _f32(out.zero)

    def on_grid(bound: float | None, unbounded: int) -> int:
        if bound is None or math.isinf(bound):
            return unbounded
        return int(torch.round(torch.clamp(_f32(bound) / scale + zero_point, out.qmin, out.qmax)))

    return on_grid(low, out.qmin), on_grid(high, out.qmax)


def _f32(x: float) -> Tensor:
    return torch.tensor(x, dtype=torch.float32)


def _centred(x: Tensor, qparams: QParams) -> Tensor:
    return x.to(torch.int64) - qparams.zero


def _converted(x: Tensor, source: QParams, out: QParams) -> Tensor:
    """`x` on the grid of `out` (xnn_define_convert): kernels that move or compare integers want one grid for all."""
    if (source.step, source.zero) == (out.step, out.zero):
        return x
    real = _centred(x, source).float() * _f32(source.step)
    converted = torch.round(real * (1 / _f32(out.step))) + out.zero
    return torch.clamp(converted, out.qmin, out.qmax)


def _clip(op: IntegerOp, q: Tensor) -> Tensor:
    low, high = bounds(op)
    return torch.clamp(q, low, high).to(torch.int8)


def _requantize(op: IntegerOp, total: Tensor, scale: Tensor) -> Tensor:
    """float32(total)·scale, rounded half to even, plus zero point, clipped (xnn_qs8_requantize_fp32)."""
    return _clip(op, torch.round(total.to(torch.float32) * scale) + op.output_qparams.zero)


def _add(op: IntegerOp, a: Tensor, b: Tensor) -> Tensor:
    """Fixed point: multipliers of at most 21 bits, one shift, ties up (xnn_init_qs8_add_minmax_scalar_params)."""
    out = _f32(op.output_qparams.step)
    ratios = [_f32(q.step) / out for q in op.input_qparams]
    shift = ADD_BITS - (math.frexp(float(torch.maximum(*ratios)))[1] - 1)
    first, second = (int(torch.round(torch.ldexp(r, torch.tensor(shift)))) for r in ratios)
    if op.kind == "sub":
        second = -second
    x, y = (_centred(t, q) for t, q in zip((a, b), op.input_qparams, strict=True))
    total = x * first + y * second + (1 << (shift - 1))
    return _clip(op, (total >> shift) + op.output_qparams.zero)


def rounded_twice(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a·b + c in float32, the product rounded before it is added."""
    return a * b + c


def mean(op: IntegerOp, x: Tensor, affine: Callable[[Tensor, Tensor, Tensor], Tensor] = rounded_twice) -> Tensor:
    """Raw sums, then float32 total·m + z with the input's zero point folded into z (reduce-nd.c); affine: how a·b + c."""
    (source,), out = op.input_qparams, op.output_qparams
    average = apply(op, [x.double()])
    count = x.numel() // average.numel()
    total = torch.round(average * count).to(torch.float32)
    scale = _f32(source.step) / _f32(out.step) * (1 / _f32(count))
    offset = affine(_f32(-count * source.zero), scale, _f32(out.zero))
    return _clip(op, torch.round(affine(total, scale, offset)))


def _average_pool(op: IntegerOp, x: Tensor) -> Tensor:
    """As ExecuTorch's lowering here states it: a depthwise convolution of ones with weight scale 1 / window."""
    kernel = op.node.args[1]
    assert isinstance(kernel, (list, tuple))
    window = int(kernel[0]) * int(kernel[-1])  # type: ignore[arg-type] # ints
    total = torch.round(apply(op, [_centred(x, op.input_qparams[0]).double()]) * window).to(torch.int64)
    scale = _f32(op.input_qparams[0].step) * (1 / _f32(window)) / _f32(op.output_qparams.step)
    return _requantize(op, total, scale)


KERNELS = Kernels(compute, MISSING, LIMITED)
