"""The constants of a .pte file: those of XNNPACK's delegates."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeq.backends.constants import Stored
from edgeq.backends.executorch.pte import delegates


def stored(path: Path) -> Stored:
    """What XNNPACK's graphs in the file hold."""
    weights, ratios, biases = [], [], []
    activations: set[tuple[float, int]] = set()
    for graph, constants in delegates(path.read_bytes()):
        for entry in graph["xvalues"]:
            value = entry["xvalue_union"]
            if "tensor_value" not in value:
                continue
            tensor, told = value["tensor_value"], value["quant_params"]
            kind, at = tensor["datatype"].removeprefix("xnn_datatype_"), tensor["constant_buffer_idx"]
            if kind == "qcint8" and at:
                weights.append(np.frombuffer(constants(at), np.int8))
                run = told["scale"] or np.frombuffer(constants(told["scale_buffer_idx"]), np.float32)
                ratios.append(np.asarray(run, np.float32))
            elif kind == "qcint32" and at:
                biases.append(np.frombuffer(constants(at), np.int32))
            elif kind in ("qint8", "quint8") and not at:
                activations.add((float(np.uint32(told["scale"]).view(np.float32)), told["zero_point"]))
    return Stored(tuple(weights), tuple(ratios), tuple(biases), frozenset(activations))
