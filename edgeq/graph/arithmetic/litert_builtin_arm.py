"""LiteRT's optimised kernels without a delegate on 64-bit Arm: as on x86, but for matrix products and softmax.

ruy's assembly rounds once where its code for x86 rounds twice; a product with a single vector is not ruy's; softmax reads
16-bit powers from a table. Sources: ruy/kernel_arm64.cc, tflite/kernels/cpu_backend_gemm_custom_gemv.h, SoftmaxInt8LUT in
tflite/kernels/internal/optimized/optimized_ops.h; checked against the aarch64 wheel of ai-edge-litert 2.1.6 on emulated
Cortex-A53 and Cortex-A76, which agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from edgeq.graph.arithmetic import litert_builtin as builtin
from edgeq.graph.arithmetic import litert_reference as reference
from edgeq.graph.integer import IntegerOp
from edgeq.graph.ops import value

VECTOR_ROWS, VECTOR_DEPTH = 4, 8  # what the code for a single vector takes at a time, and at least


def multiply_once(x: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """x · mantissa · 2^(shift − 31), rounded once, ties upwards."""
    right = 31 - shift
    return (x * mantissa + (torch.ones_like(right) << (right - 1))) >> right


def weighted(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """CONV_2D and FULLY_CONNECTED; depthwise convolutions and those with groups are as on x86."""
    assert op.weight is not None
    outputs, depth = op.weight.shape[0], op.weight[0].numel()
    vectors = value(op.node).numel() // outputs
    vector = vectors == 1 and outputs >= VECTOR_ROWS and depth >= VECTOR_DEPTH
    product = builtin.multiply_upwards if vector else multiply_once
    return (builtin.linear if op.kind == "linear" else builtin.weighted)(op, inputs, product)


def softmax(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """SOFTMAX: exp as a table of 256 16-bit integers, summed exactly, divided by one fixed-point multiplier a row."""
    fixed = reference.FIXED_OUTPUT["softmax"]
    axis = int(op.node.args[1])  # type: ignore[arg-type] # an int
    x = inputs[0].movedim(axis, -1).long()
    source = np.float32(op.input_qparams[0].step)
    powers = np.exp(source * np.arange(-255, 1, dtype=np.float32)).astype(np.float32) * np.float32(65535)
    table = torch.from_numpy(np.minimum(np.floor(powers.astype(np.float64) + 0.5), 65535).astype(np.int64))
    entries = table[x - x.amax(-1, keepdim=True) + 255]
    totals, rows = torch.unique(entries.sum(-1, keepdim=True), return_inverse=True)
    inverses = np.float32(1) / (totals.numpy().astype(np.float32) * np.float32(fixed.step))
    pairs = torch.tensor([reference.quantize_multiplier(float(inverse)) for inverse in inverses])
    shares = builtin.multiply_upwards(entries, pairs[rows, 0], pairs[rows, 1])
    out = torch.clamp(shares + fixed.zero, -128, 127).to(torch.int8).movedim(-1, axis).contiguous()
    return torch.clamp(reference.requantized(out, fixed, op.output_qparams, builtin.multiply_upwards), op.low, op.high)


def compute(op: IntegerOp, inputs: Sequence[Tensor]) -> Tensor:
    """The int8 output of `op` as these kernels compute it; `inputs` are int8 in torch's layout.

    Raises:
        EdgeqError: there is no such kernel.
    """
    kernel = BY_KIND.get(op.kind)
    return builtin.compute(op, inputs) if kernel is None else kernel(op, inputs)


BY_KIND: dict[str, reference.Kernel] = {
    **dict.fromkeys(("conv1d", "conv2d", "linear"), weighted),
    "softmax": softmax,
}


KERNELS = replace(builtin.KERNELS, compute=compute)
