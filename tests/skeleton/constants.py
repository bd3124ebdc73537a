"""The constants of a .pt2 file."""

from __future__ import annotations

from pathlib import Path

from edgeq.backends.constants import Stored
from edgeq.graph.integer import read
from edgeq.graph.package import load_program


def stored(path: Path) -> Stored:
    """What the file's layers hold."""
    layers = [
        op for op in read(load_program(path)).ops.values() if op.weight is not None and op.weight_scale is not None
    ]
    return Stored(
        tuple(op.weight.numpy() for op in layers if op.weight is not None),
        tuple(op.weight_scale.numpy() for op in layers if op.weight_scale is not None),
    )
