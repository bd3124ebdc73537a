"""TVM's integer rules, which are ours: edgeq.backends.tvm emits the kernels, and this file predicts their bytes.

Two rules cover everything. All kinds but add and sub form an exact integer S and then compute
    out = clip(round_half_even(float32(S) · m) + zero_point, low, high)
with m in float32 from `ratio` (for convolutions and linear this is XNNPACK's fp32 requantisation). add and sub
compute in int32 fixed point,
    out = clip(((a − za)·Ma ± (b − zb)·Mb + 2^(shift−1)) >> shift) + zero_point)
with Ma, Mb, shift from `fixed_point` (XNNPACK's qs8-vadd has the same form). Neither rule has a float multiply
followed by a float add, so that no compiler can change a bit by fusing the two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from edgeq.graph.arithmetic.ideal import looked_up
from edgeq.graph.arithmetic.kernels import Kernels
from edgeq.graph.arithmetic.sums import accumulate, channels
from edgeq.graph.integer import IntegerOp
from edgeq.graph.kinds import role_of
from edgeq.graph.ops import node_arg, value
from edgeq.spec import EdgeqError

MISSING = frozenset({"softmax", "matmul"})  # computed in float, though between integers
FRACTION = 20  # the larger of an addition's two multipliers has this many bits below its leading one


def compute(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """The int8 output of `op` on int8 inputs in torch layout, byte for byte as TVM's kernel computes it.

    Raises:
        EdgeqError: there is no integer kernel for the operator's kind.
    """
    if role_of(op.kind) == "curve":
        return looked_up(op, inputs[0])
    shifted = [x.to(torch.int64) - q.zero for x, q in zip(inputs, op.input_qparams, strict=True)]
    zero_point = op.output_qparams.zero
    if op.kind in ("add", "sub"):
        first, second, shift = fixed_point(op)
        total = shifted[0] * first + shifted[1] * second
        scaled = (total + (1 << (shift - 1))) >> shift
        return torch.clamp(scaled + zero_point, op.low, op.high).to(torch.int8)
    if op.kind == "cat":
        parts = [x.to(torch.float32) * ratio(op, i) for i, x in enumerate(shifted)]
        joined = op.node.target([torch.round(p) for p in parts], *op.node.args[1:])  # type: ignore[operator] # aten
        return _finish(op, joined)
    if role_of(op.kind) == "layer":
        total = accumulate(op, inputs[0])
        return _finish(op, total.to(torch.float32) * channels(op, ratio(op), total.dim()))
    if op.kind == "mul":
        total = shifted[0] * shifted[1]
    elif op.kind == "mean":
        axes, keep = mean_axes(op.node)
        total = shifted[0].sum(axes, keepdim=keep)
    elif op.kind == "avg_pool2d":
        kernel, stride, padding, ceil = pool_attrs(op.node)
        total = F.avg_pool2d(shifted[0].double(), kernel, stride, padding, ceil, True, 1).long()
    elif role_of(op.kind) == "move" or op.kind == "max_pool2d":
        moved = op.node.target(shifted[0].to(torch.float32), *op.node.args[1:], **op.node.kwargs)  # type: ignore[operator] # an aten operator
        total = moved.to(torch.int64)
    elif role_of(op.kind) == "clip" or op.kind == "requantize":
        total = shifted[0]
    else:
        raise EdgeqError(f"TVM has no integer kernel for {op.kind} ({op.layer}): leave it in float")
    return _finish(op, total.to(torch.float32) * ratio(op))


def _finish(op: IntegerOp, scaled: Tensor) -> Tensor:
    return torch.clamp(torch.round(scaled) + op.output_qparams.zero, op.low, op.high).to(torch.int8)


def ratio(op: IntegerOp, index: int = 0) -> Tensor:
    """m, float32: one number, [C_out] for kinds with weights, [H, W] of the output for avg_pool2d.

    Weighted: float32(s_in)·float32(s_w[c]) / float32(s_out), rounded after each step. mul: the same with the second
    input's scale. mean, avg_pool2d: s_in / (s_out·count) in double, rounded once. Else float32(s_in) / float32(s_out).
    index: which input, for cat.
    """
    scale_in = torch.tensor(op.input_qparams[index].step, dtype=torch.float32)
    scale_out = torch.tensor(op.output_qparams.step, dtype=torch.float32)
    if op.weight_scale is not None:
        return scale_in * op.weight_scale / scale_out
    if op.kind == "mul":
        return scale_in * torch.tensor(op.input_qparams[1].step, dtype=torch.float32) / scale_out
    if op.kind == "mean":
        shape = value(op.node.all_input_nodes[0]).shape
        count = math.prod(shape[a] for a in mean_axes(op.node)[0])
        return (scale_in.double() / (scale_out.double() * count)).to(torch.float32)
    if op.kind == "avg_pool2d":
        return (scale_in.double() / (scale_out.double() * pool_divisors(op.node))).to(torch.float32)
    return scale_in / scale_out


def fixed_point(op: IntegerOp) -> tuple[int, int, int]:
    """(Ma, Mb, shift) of an addition: scale_in / scale_out in units of 2^-shift; Mb is negative for a subtraction.

    shift leaves the larger multiplier FRACTION + 1 bits, so that the sum stays below 2^30, but is at most 30.

    Raises:
        EdgeqError: an input's scale is 2^FRACTION or more times the output's.
    """
    first, second = (q.step / op.output_qparams.step for q in op.input_qparams)
    shift = min(30, FRACTION - math.floor(math.log2(max(first, second))))
    if shift < 1:
        raise EdgeqError(f"{op.layer}: the output's scale is 2^{FRACTION} times finer than an input's: recalibrate")
    sign = -1 if op.kind == "sub" else 1
    return round(first * 2**shift), sign * round(second * 2**shift), shift


def mean_axes(node: Node) -> tuple[tuple[int, ...], bool]:
    """Axes a mean runs over, none negative, and whether they are kept."""
    rank = value(node.all_input_nodes[0]).dim()
    if node.target is torch.ops.aten.adaptive_avg_pool2d.default:
        return (rank - 2, rank - 1), True
    raw = node_arg(node, 1, node.kwargs.get("dim"))
    axes = range(rank) if not raw and raw != 0 else raw if isinstance(raw, (list, tuple)) else [raw]
    return tuple(sorted(int(a) % rank for a in axes)), bool(node_arg(node, 2, node.kwargs.get("keepdim", False)))


def pool_attrs(node: Node) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], bool]:
    """Kernel, stride, padding and ceil mode of avg_pool2d."""
    kernel = _pair(node.args[1])
    stride = node_arg(node, 2, [])
    return kernel, _pair(stride) if stride else kernel, _pair(node_arg(node, 3, 0)), bool(node_arg(node, 4, False))


def _pair(raw: object) -> tuple[int, int]:
    items = [int(i) for i in raw] if isinstance(raw, (list, tuple)) else [int(raw)]  # type: ignore[call-overload] # an int
    return items[0], items[-1]


def pool_divisors(node: Node) -> Tensor:
    """What avg_pool2d divides each output's sum by, float64 [H_out, W_out] (aten's rules for padding and ceil mode)."""
    kernel, stride, padding, _ = pool_attrs(node)
    include, override = node_arg(node, 5, True), node_arg(node, 6, None)
    size, out = value(node.all_input_nodes[0]).shape[-2:], value(node).shape[-2:]
    if override is not None:
        return torch.full(tuple(out), float(override), dtype=torch.float64)
    sides = []
    for axis in range(2):
        start = torch.arange(out[axis], dtype=torch.float64) * stride[axis] - padding[axis]
        end = torch.clamp(start + kernel[axis], max=size[axis] + padding[axis])
        sides.append(end - start if include else torch.clamp(end, max=size[axis]) - torch.clamp(start, min=0))
    return sides[0][:, None] * sides[1][None, :]


KERNELS = Kernels(compute, MISSING)
