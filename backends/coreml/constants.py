"""The constants of an .mlpackage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import Tensor

from edgeq.backends.constants import Stored
from edgeq.backends.coreml.package import Operation, Program, read


def stored(path: Path) -> Stored:
    """What the package's MIL program holds; its biases are floats."""
    program = read(path)
    weights, ratios, activations, half = [], [], set(), False
    dtypes = {v.name: v.dtype for v in (*program.inputs, *(o for op in program.operations for o in op.outputs))}
    for op in program.operations:
        if op.type == "constexpr_affine_dequantize":
            weights.append(_constant(program, op, "quantized_data").numpy())
            ratios.append(_constant(program, op, "scale").numpy())
            half |= ratios[-1].dtype == np.float16
        elif op.type in ("quantize", "dequantize"):
            scale = _constant(program, op, "scale").numpy()
            half |= scale.dtype == np.float16
            zero = _constant(program, op, "zero_point") if "zero_point" in op.inputs else None
            integers = op.outputs[0].dtype if op.type == "quantize" else dtypes[op.inputs["input"][0]]
            shift = 128 if integers == "uint8" else 0
            activations.add((float(scale.reshape(-1)[0]), (0 if zero is None else int(zero.reshape(-1)[0])) - shift))
    return Stored(tuple(weights), tuple(ratios), None, frozenset(activations), half=half)


def _constant(program: Program, op: Operation, parameter: str) -> Tensor:
    found = program.constants[op.inputs[parameter][0]]
    assert isinstance(found, Tensor)
    return found
