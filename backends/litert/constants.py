"""The constants of a .tflite file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeq.backends.constants import Stored
from edgeq.backends.litert.flatbuffer import schema


def stored(path: Path) -> Stored:
    """What the file holds; uint8 at its edge (`--io uint8`) is told as the int8 it is shifted from."""
    s = schema()
    model = s.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    weights, ratios, biases, activations = [], [], [], set()
    for tensor in (t for graph in model.subgraphs for t in graph.tensors):
        told, data = tensor.quantization, model.buffers[tensor.buffer].data
        if told is None or told.scale is None or not len(told.scale):
            continue
        if data is None or not len(data):
            shift = 128 if tensor.type == s.TensorType.UINT8 else 0
            activations.add((float(told.scale[0]), int(told.zeroPoint[0]) - shift))
        elif tensor.type == s.TensorType.INT8:
            weights.append(np.frombuffer(bytes(data), np.int8))
            ratios.append(np.asarray(told.scale))
        elif tensor.type == s.TensorType.INT32:
            biases.append(np.frombuffer(bytes(data), np.int32))
    return Stored(tuple(weights), tuple(ratios), tuple(biases), frozenset(activations))
