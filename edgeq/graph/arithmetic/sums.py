"""Exact integer sums of convolutions and matrix products, the part that all runtimes share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeq.graph.integer import IntegerOp
from edgeq.graph.kinds import weights_of
from edgeq.graph.ops import ConvAttrs


def accumulate(op: IntegerOp, x: Tensor) -> Tensor:
    """Σ (x - zero point)·w + bias as exact integers.

    x: integers, torch layout (conv [N, C, H, W] or [N, C, L], linear [..., C]). Returns int64, the output's shape,
    unclipped. Sums run in float32 where no partial sum can pass 2^24, in float64 (exact to 2^53) elsewhere.
    """
    assert op.weight is not None
    shifted = x.to(torch.int32) - op.input_qparams[0].zero
    dtype = _exact_dtype(op)
    total = _product(op, shifted.to(dtype), op.weight.to(dtype)).to(torch.int64)
    if op.bias is not None:
        shape = [1] * total.dim()
        shape[weights_of(op.kind).out_axis] = -1
        total = total + op.bias.view(shape)
    return total


def channels(op: IntegerOp, per_channel: Tensor, rank: int) -> Tensor:
    """`per_channel` [C_out] shaped to broadcast over an output of `rank` axes."""
    shape = [1] * rank
    shape[weights_of(op.kind).out_axis] = -1
    return per_channel.view(shape)


def _exact_dtype(op: IntegerOp) -> torch.dtype:
    """float32 when even the largest possible partial sum is exact in it."""
    assert op.weight is not None
    axis, source = weights_of(op.kind).axis, op.input_qparams[0]
    steps = source.qmax - source.qmin
    taps = op.weight.to(torch.int64).abs().transpose(0, axis).flatten(1).sum(1).max().item()
    return torch.float32 if taps * steps < 1 << 24 else torch.float64


def _product(op: IntegerOp, x: Tensor, w: Tensor) -> Tensor:
    if op.kind == "linear":
        return F.linear(x, w)
    a = op.attrs
    assert isinstance(a, ConvAttrs)
    if op.kind == "conv_transpose2d":
        return F.conv_transpose2d(x, w, None, a.stride, a.padding, a.output_padding, a.groups, a.dilation)  # type: ignore[arg-type] # torch wants lists
    if op.kind == "conv1d":
        return F.conv1d(x, w, None, a.stride, a.padding, a.dilation, a.groups)
    return F.conv2d(x, w, None, a.stride, a.padding, a.dilation, a.groups)
