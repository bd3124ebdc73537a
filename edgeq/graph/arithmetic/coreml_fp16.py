"""Core ML's rule for a float16 package: that of `coreml`, with scales and biases rounded to half precision."""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from typing import Any

from torch import Tensor
from torch._ops import OpOverload

from edgeq.graph.arithmetic import coreml
from edgeq.graph.arithmetic.kernels import Kernels


def constant(tensor: Tensor) -> Tensor:
    """A constant of a float island as the package stores it: floats rounded to half."""
    return coreml.stored(tensor, half=True) if tensor.is_floating_point() else tensor


def arguments(target: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A float island's arguments as the package stores them: what keeps a norm from dividing by zero is a half, too."""
    names = [a.name for a in target._schema.arguments] if isinstance(target, OpOverload) else []
    return tuple(
        float(coreml.stored(a, half=True)) if name == "eps" else a for name, a in zip_longest(names[: len(args)], args)
    )


KERNELS = Kernels(
    partial(coreml.compute, half=True),
    coreml.MISSING,
    quantize=partial(coreml.quantize, half=True),
    widen=partial(coreml.dequantize, half=True),
    constant=constant,
    arguments=arguments,
)
