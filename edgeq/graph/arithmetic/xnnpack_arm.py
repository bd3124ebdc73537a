"""XNNPACK's int8 kernels on 64-bit Arm, byte for byte: the rules of `xnnpack`, but for products.

Source: XNNPACK src/qs8-vmul/neon.c.in with `rndnu` requantisation; checked against the aarch64 wheel of executorch 1.5.1 on
emulated Cortex-A53 and Cortex-A76, which agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgeq.graph.arithmetic import xnnpack
from edgeq.graph.integer import IntegerOp


def compute(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """The int8 output of `op` on int8 `inputs` in torch layout.

    mul: the product of both integers times a float32 ratio, exactly, ties up (vqdmulh by the ratio's 24 bits, then a
    rounding shift); on x86 it is rounded to float32 first, and ties go to even.

    Raises:
        EdgeqError: XNNPACK has no int8 kernel of this kind.
    """
    if op.kind != "mul":
        return xnnpack.compute(op, inputs)
    a, b = (x.to(torch.int64) - q.zero for x, q in zip(inputs, op.input_qparams, strict=True))
    left, right, out = (torch.tensor(q.step, dtype=torch.float32) for q in (*op.input_qparams, op.output_qparams))
    ratio = (left * right / out).double()
    low, high = xnnpack.bounds(op)
    return torch.clamp(torch.floor((a * b) * ratio + 0.5) + op.output_qparams.zero, low, high).to(torch.int8)


KERNELS = replace(xnnpack.KERNELS, compute=compute)
