"""Artefacts: a lowered program on disk, and what becomes of its operators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeq.spec.grid import TensorInfo
from edgeq.spec.target import Status


@dataclass(frozen=True, slots=True)
class OpPlacement:
    """One row of a coverage table: what a runtime does with an operator of the artefact, and why.

    name: the operator's name inside the artefact. layers: the layer keys it computes, where known.
    inserted: a converter put it between layers, for a layout or a type; its layers are those beside it.
    """

    name: str
    kind: str
    status: Status
    reason: str = ""
    layers: tuple[str, ...] = ()
    inserted: bool = False


@dataclass(frozen=True, slots=True)
class Artifact:
    """A lowered program on disk: `path` is a file, or a folder for an .mlpackage.

    inputs, outputs: as the file has them, where they may be of other types than the program's; set by `lower` alone.
    """

    backend: str
    path: Path
    coverage: tuple[OpPlacement, ...] = ()
    notes: tuple[str, ...] = ()
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
