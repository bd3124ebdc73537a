"""QDQ or float program → a .pt2 file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from edgeq import whole
from edgeq.graph.integer import members, read
from edgeq.graph.ops import operator_name
from edgeq.spec import Artifact, OpPlacement


def lower(program: ExportedProgram, folder: Path, *, name: str, layers: Mapping[str, str], **options: str) -> Artifact:
    """Write `folder/name.pt2`, whole or not at all."""
    path, held = folder / f"{name}.pt2", io.BytesIO()
    torch.export.save(program, held)
    with whole.file(path) as part:
        part.write_bytes(held.getbuffer())
    integers = read(program, layers)
    keys = members(integers, layers)
    rows = [OpPlacement(op.name, op.kind, "integer", "", keys.get(op.name, ())) for op in integers.ops.values()]
    for node in integers.floats:
        reason = "its layer is not quantized, so it computes in float64"
        rows.append(OpPlacement(node.name, operator_name(node), "float island", reason, keys.get(node.name, ())))
    return Artifact("skeleton", path, tuple(rows))
