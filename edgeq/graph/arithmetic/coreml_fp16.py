"""Core ML's rule for a float16 package: that of `coreml`, with scales and biases rounded to half precision."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from edgeq.graph.arithmetic import coreml


def constant(tensor: Tensor) -> Tensor:
    """A constant of a float island as the package stores it: floats rounded to half."""
    return coreml.stored(tensor, half=True) if tensor.is_floating_point() else tensor


compute = partial(coreml.compute, half=True)
quantize = partial(coreml.quantize, half=True)
widen = partial(coreml.dequantize, half=True)  # of what a float island reads
