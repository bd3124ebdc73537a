"""Versions of LiteRT's operators: the lowest that says what an operator means, and the runtime that first had it.

From tools/versioning/{op_version,runtime_version}.cc of TensorFlow's converter, for the operators that edgeq writes itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# operator → version → first runtime with int8 kernels of it
SINCE: Mapping[str, Mapping[int, str]] = {
    "ADD": {2: "1.14.0"},
    "AVERAGE_POOL_2D": {2: "1.14.0"},
    "BATCH_MATMUL": {2: "2.3.0"},
    "CAST": {1: "1.5.0"},
    "CONCATENATION": {2: "1.14.0"},
    "CONV_2D": {3: "1.14.0", 6: "2.9.0"},
    "DEPTHWISE_CONV_2D": {3: "1.14.0"},
    "DEQUANTIZE": {2: "1.14.0", 5: "2.7.0"},
    "FULLY_CONNECTED": {4: "1.14.0", 5: "2.0.0"},
    "GATHER": {2: "1.14.0"},
    "LOGISTIC": {2: "1.14.0"},
    "MAXIMUM": {2: "1.14.0", 3: "2.3.0"},
    "MAX_POOL_2D": {2: "1.14.0"},
    "MEAN": {2: "1.14.0"},
    "MINIMUM": {2: "1.14.0", 3: "2.3.0"},
    "MUL": {2: "1.14.0", 3: "1.15.0"},
    "PAD": {2: "1.14.0", 4: "2.6.0"},
    "PADV2": {2: "1.14.0", 4: "2.6.0"},
    "QUANTIZE": {1: "1.14.0"},
    "RELU": {2: "2.1.0"},
    "RELU6": {2: "1.14.0"},
    "RESHAPE": {1: "1.5.0"},
    "RESIZE_NEAREST_NEIGHBOR": {2: "1.14.0", 3: "2.3.0"},
    "SOFTMAX": {2: "1.14.0"},
    "STRIDED_SLICE": {2: "1.14.0", 4: "2.2.0"},
    "SUB": {2: "1.14.0", 3: "2.3.0"},
    "TANH": {2: "1.14.0"},
    "TRANSPOSE": {2: "1.14.0", 4: "2.3.0", 6: "2.12.0"},
    "TRANSPOSE_CONV": {3: "2.3.0", 4: "2.13.0"},
}

# operator → first runtime that had it in float, all of version 1
FLOATS: Mapping[str, str] = {
    "ABS": "1.13.0",
    "ADD": "1.5.0",
    "COS": "1.14.0",
    "DIV": "1.6.0",
    "EXP": "1.7.0",
    "FLOOR": "1.9.0",
    "GELU": "2.9.0",
    "HARD_SWISH": "1.15.0",
    "LEAKY_RELU": "1.13.1",
    "LOG": "1.14.0",
    "LOGISTIC": "1.14.0",
    "MAXIMUM": "1.14.0",
    "MINIMUM": "1.14.0",
    "MUL": "1.5.0",
    "NEG": "1.9.0",
    "POW": "1.10.0",
    "RELU": "1.5.0",
    "RELU6": "1.5.0",
    "RELU_N1_TO_1": "1.5.0",
    "RSQRT": "1.10.0",
    "SIN": "1.9.0",
    "SQRT": "1.10.0",
    "SQUARE": "1.12.0",
    "SUB": "1.6.0",
    "TANH": "1.14.0",
}


def since(code: str, version: int) -> str:
    """The first runtime that has a version of builtin `code`."""
    return FLOATS[code] if version == 1 and code in FLOATS else SINCE[code][version]


def lowest(code: str, inputs: Sequence[Any], outputs: Sequence[Any], options: Mapping[str, Any]) -> int:
    """The lowest version of builtin `code` that means this operator; inputs, outputs: its tensors, schema objects TensorT."""
    if code in FLOATS and not any(t.quantization is not None and len(t.quantization.scale) for t in outputs):
        return 1
    rank = max((len(t.shape) for t in inputs), default=0)
    spread = rank > 4 and len({tuple(t.shape) for t in inputs[:2]}) > 1
    higher = {
        "CONV_2D": (6, code == "CONV_2D" and inputs[0].shape[-1] != inputs[1].shape[-1]),  # groups
        "DEQUANTIZE": (5, code == "DEQUANTIZE" and len(inputs[0].quantization.scale) > 1),
        "FULLY_CONNECTED": (5, bool(options.get("keepNumDims"))),
        "MAXIMUM": (3, spread),
        "MINIMUM": (3, spread),
        "MUL": (3, code == "MUL" and _product_scale(inputs, outputs) >= 1),
        "PAD": (4, rank > 4),
        "PADV2": (4, rank > 4),
        "RESIZE_NEAREST_NEIGHBOR": (3, bool(options.get("halfPixelCenters"))),
        "STRIDED_SLICE": (4, rank > 4),
        "SUB": (3, spread),
        "TRANSPOSE": (6 if rank > 5 else 4, rank > 4),
        "TRANSPOSE_CONV": (4, bool(options.get("fusedActivationFunction"))),
    }
    version, needed = higher.get(code, (0, False))
    return version if needed else min(SINCE[code])


def newest(runtimes: Sequence[str]) -> str:
    """The latest of some releases, such as 2.13.0."""
    return max(runtimes, key=lambda text: [int(part) for part in text.split(".")])


def _product_scale(inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    a, b, c = (float(t.quantization.scale[0]) for t in (*inputs, *outputs))
    return a * b / c
