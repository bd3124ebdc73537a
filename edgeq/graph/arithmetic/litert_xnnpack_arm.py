"""LiteRT's default kernels on 64-bit Arm: as on x86, but for XNNPACK's products and means, and softmax.

Checked against the aarch64 wheel of ai-edge-litert 2.1.6 on emulated Cortex-A53 and Cortex-A76, which agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgeq.graph.arithmetic import litert_builtin_arm, litert_xnnpack, xnnpack, xnnpack_arm
from edgeq.graph.integer import IntegerOp


def compute(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """The int8 output of `op` as LiteRT computes it by default; `inputs` are int8 in torch's layout.

    Raises:
        EdgeqError: there is no such kernel.
    """
    if op.kind == "mul":
        return xnnpack_arm.compute(op, inputs)
    if op.kind == "mean":
        return xnnpack.mean(op, inputs[0], fused)
    if op.kind == "softmax":  # not delegated
        return litert_builtin_arm.compute(op, inputs)
    return litert_xnnpack.compute(op, inputs)


def fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a·b + c in float32, rounded once, as the compiler of this wheel contracts it into fmadd."""
    product = a.double() * b.double()  # exact: 24 and 24 bits
    addend = c.double()
    total = product + addend
    # what that sum lost (Knuth's TwoSum); a last bit that remembers it makes the second rounding right (round to odd)
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    even = (total.view(torch.int64) & 1) == 0
    towards = torch.nextafter(total, torch.copysign(torch.full_like(total, torch.inf), lost))
    return torch.where((lost != 0) & even, towards, total).float()


KERNELS = replace(litert_xnnpack.KERNELS, compute=compute)
