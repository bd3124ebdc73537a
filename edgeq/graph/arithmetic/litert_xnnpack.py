"""LiteRT's default kernels: XNNPACK's delegate where it takes an int8 operator, the optimised kernels elsewhere.

Sources: tflite/delegates/xnnpack/xnnpack_delegate.cc; XNNPACK src/microparams-init.c (qs8_cvt); fitted to the bytes of
ai-edge-litert 2.3.0, where softmax, logistic, tanh, batch matmul and average pooling in int8 are left to the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeq.graph.arithmetic import litert_builtin as builtin
from edgeq.graph.arithmetic import litert_reference as reference
from edgeq.graph.arithmetic import xnnpack
from edgeq.graph.arithmetic.kernels import Kernels
from edgeq.graph.integer import IntegerOp
from edgeq.graph.ops import ConvAttrs

DELEGATED = frozenset(
    {"conv1d", "conv2d", "depthwise_conv2d", "conv_transpose2d", "linear", "add", "sub", "mul", "mean"}
)


def convert(x: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """QUANTIZE from int8 to int8: the ratio rounded to 8 fractional bits, ties upwards (qs8_cvt)."""
    ratio = (mantissa.double() * torch.pow(2.0, (shift - 31).double())).float()
    return (x * torch.round(ratio * 256).long() + 128) >> 8


def compute(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """The int8 output of `op` as LiteRT computes it by default; `inputs` are int8 in torch's layout.

    Raises:
        EdgeqError: there is no such kernel.
    """
    if op.kind in DELEGATED and not _refused(op, inputs):
        return xnnpack.compute(op, inputs)
    kernel = _RESCALING.get(op.kind)
    return builtin.compute(op, inputs) if kernel is None else kernel(op, inputs)


def _refused(op: IntegerOp, inputs: Sequence[Tensor]) -> bool:
    """What the delegate leaves to the optimised kernels: a transposed convolution whose taps leave gaps."""
    if op.kind == "conv_transpose2d":
        assert isinstance(op.attrs, ConvAttrs) and op.weight is not None
        return any(k < s for k, s in zip(op.weight.shape[2:], op.attrs.stride, strict=True))
    return False


_RESCALING = reference.rescaling(convert)


KERNELS = Kernels(compute, reference.MISSING, reference.LIMITED)
