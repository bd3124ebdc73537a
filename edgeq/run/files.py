"""Artefacts of a model folder: where they lie and what stands beside them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeq import backends, schema
from edgeq.graph.package import QuantizedModel
from edgeq.graph.store import SCHEMA, plain_name, record, recorded, write_json, wrong_numbers
from edgeq.run.coverage import Counts, coverage_json
from edgeq.spec import Artifact, EdgeqError, OpPlacement, TensorInfo


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """model.json or float.json beside an artefact; see docs/json.md."""

    backend: str
    artifact: str
    model: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocessing: Any
    coverage: tuple[OpPlacement, ...]
    notes: tuple[str, ...]
    counts: Counts | None = None
    schema: int = SCHEMA


def artifact_json(artifact: Artifact, model: QuantizedModel, name: str = "model") -> dict[str, Any]:
    """What an app needs to know about an artefact, as it is written beside the file; of the float twin no counts."""
    return {
        "schema": SCHEMA,
        "backend": artifact.backend,
        "artifact": artifact.path.name,
        "model": model.name,
        "inputs": [dataclasses.asdict(i) for i in artifact.inputs or model.inputs],
        "outputs": [dataclasses.asdict(o) for o in artifact.outputs or model.outputs],
        "preprocessing": _preprocessing(artifact, model),
        "coverage": [dataclasses.asdict(row) for row in artifact.coverage],
        "notes": list(artifact.notes),
        **({"counts": coverage_json(artifact, model)} if name == "model" else {}),
    }


def _preprocessing(artifact: Artifact, model: QuantizedModel) -> Any:
    """The task's PREPROCESSING, with the layout that the file has where that is another."""
    told = model.preprocessing
    turned = any(a.shape != b.shape for a, b in zip(artifact.inputs, model.inputs, strict=False))
    return told | {"layout": "NHWC"} if told and told.get("layout") == "NCHW" and turned else told


def put(artifact: Artifact, model: QuantizedModel, name: str) -> None:
    """Write what an app needs to know beside `artifact`, and the hashes of both into the manifest of the model's folder."""
    told = artifact.path.parent / f"{name}.json"
    write_json(told, artifact_json(artifact, model, name))
    if model.folder is not None and told.resolve().is_relative_to(model.folder.resolve()):
        record(model.folder.resolve(), [artifact.path.resolve(), told.resolve()])


def find(model: QuantizedModel, backend: str, name: str = "model") -> Artifact:
    """The artefact exported earlier, as it was then.

    Raises:
        EdgeqError: the model was not exported to `backend`, or a file of it was changed since.
    """
    backends.backend(backend)  # names the backends there are
    root = model.folder or Path()
    told, remedy = root / backend / f"{name}.json", f"run edgeq export {root} --to {backend}"
    if not told.is_file():
        raise EdgeqError(f"{told.parent}: no {backend} artefact; {remedy}")
    described = schema.read(recorded(root, told, remedy), ArtifactFile, f"{told}: missing; {remedy}")
    if described.backend != backend or "/" in plain_name(described.artifact, told):
        raise EdgeqError(
            f"{told}: names {described.artifact!r} of {described.backend}, which is not beside it; {remedy}"
        )
    for info in (*described.inputs, *described.outputs):
        if info.qparams is not None and (wrong := wrong_numbers(info.qparams)):
            raise EdgeqError(f"{told}: {info.name}: {wrong}; {remedy}")
    path = recorded(root, told.with_name(described.artifact), remedy)
    return Artifact(backend, path, described.coverage, described.notes)


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
