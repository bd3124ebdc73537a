"""Artefacts of a model folder: where they lie and what stands beside them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeq import backends
from edgeq.graph.package import QuantizedModel, read_json
from edgeq.spec import Artifact, EdgeqError, OpPlacement


def artifact_json(artifact: Artifact, model: QuantizedModel) -> dict[str, Any]:
    """What an app needs to know about an artefact, as it is written beside the file."""
    return {
        "backend": artifact.backend,
        "artifact": artifact.path.name,
        "model": model.name,
        "inputs": [dataclasses.asdict(i) for i in model.inputs],
        "outputs": [dataclasses.asdict(o) for o in model.outputs],
        "preprocessing": model.preprocessing,
        "coverage": [dataclasses.asdict(row) for row in artifact.coverage],
        "notes": list(artifact.notes),
    }


def find(model: QuantizedModel, backend: str, name: str = "model") -> Artifact:
    """The artefact exported earlier.

    Raises:
        EdgeqError: the model was not exported to `backend`.
    """
    backends.backend(backend)  # names the backends there are
    folder = (model.folder or Path()) / backend
    described = read_json(
        folder / f"{name}.json", f"{folder}: no {backend} artefact; run edgeq export {model.folder} --to {backend}"
    )
    path = folder / described["artifact"]
    if not path.exists():
        raise EdgeqError(f"{path}: missing; run edgeq export {model.folder} --to {backend}")
    rows = tuple(OpPlacement(**{**row, "layers": tuple(row["layers"])}) for row in described["coverage"])
    return Artifact(backend, path, rows, tuple(described["notes"]))


def exported(model: QuantizedModel, name: str = "model", *, elsewhere: bool = False) -> tuple[str, ...]:
    """Backends this model has an artefact for, in the registry's order; `elsewhere`: compiled for other machines too."""
    if model.folder is None:
        return ()
    names = (*backends.RUNTIMES, *(backends.VARIANTS if elsewhere else ()))
    return tuple(b for b in names if (model.folder / b / f"{name}.json").is_file())


def size(path: Path) -> int:
    """Bytes of an artefact, a file or a package's files together."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def sizes(artifact: Artifact, model: QuantizedModel) -> dict[str, Any]:
    """An artefact's bytes beside float's: of the float artefact where `profile` has made it, else of the float weights."""
    try:
        floating, what = size(find(model, artifact.backend, "float").path), "artefact"
    except EdgeqError:
        state = {**model.twin.state_dict, **model.twin.constants}.values()
        floating = sum(x.numel() * x.element_size() for x in state if isinstance(x, Tensor))
        what = "weights"
    return {"size_bytes": size(artifact.path), "float_size_bytes": floating, "float_size_of": what}
