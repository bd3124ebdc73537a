"""The constants of a .pte file: those of XNNPACK's delegates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgeq.backends.constants import Stored
from edgeq.backends.executorch.pte import delegates

SMALLEST = 1e-20  # below it four bytes are integers: offsets, types, flags


def stored(path: Path) -> Stored:
    """What XNNPACK's graphs in the file hold."""
    weights, ratios, biases = [], [], []
    activations: set[tuple[float, int]] = set()
    for graph, raw, constants in delegates(path.read_bytes()):
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
                activations.update(_exact(raw, told["scale"], told["zero_point"]))
    return Stored(tuple(weights), tuple(ratios), tuple(biases), frozenset(activations))


def _exact(raw: bytes, scale: float, zero_point: int) -> Iterator[tuple[float, int]]:
    """The scales of a graph's bytes that read `scale`, beside their zero point: flatc prints six digits behind the point.

    Integers of the file are tiny floats, which a scale that reads 0 would take for its own.
    """
    found = False
    words, integers = (
        np.frombuffer(raw[: len(raw) // 4 * 4], np.float32),
        np.frombuffer(raw[: len(raw) // 4 * 4], np.int32),
    )
    for at in map(int, np.flatnonzero((words > SMALLEST) & (np.abs(words.astype(np.float64) - scale) < 1e-6))):
        if zero_point == 0 or zero_point in (integers[at - 1], integers[min(at + 1, len(integers) - 1)]):
            found = True
            yield float(words[at]), zero_point
    if not found:
        yield scale, zero_point
