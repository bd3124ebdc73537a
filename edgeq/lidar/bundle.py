"""A quantized lidar detector as one folder per runtime: artefacts, pipeline.json, a golden frame, and code to run it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeq import backends
from edgeq.graph.excerpt import excerpt
from edgeq.graph.package import QuantizedModel, load
from edgeq.graph.rules import refuse_beyond
from edgeq.graph.store import hash_of, plain, replacing
from edgeq.lidar import pipeline, runner
from edgeq.lidar.pillars import grid
from edgeq.lidar.scenes import HDL64_FRONT, scene
from edgeq.spec import EdgeqError, EdgeqWarning

# numpy alone, importing each other relatively: they run where nothing else of edgeq is, beside the runtime's `engine.py`
CODE = ("__init__", "anchors", "boxes", "centre", "pillars", "pipeline", "runner", "voxels")


def bundle(
    model: QuantizedModel | str | Path, to: str, *, folder: str | Path | None = None, points: str | Path | None = None
) -> Path:
    """A lidar detector as a deployable folder for runtime `to`; returns it (`<model folder>/bundle/<to>`).

    Artefacts, pipeline.json, a golden frame with its boxes, and Python code that runs them with numpy and the runtime
    alone. points: file of the golden frame, float32 rows of x, y, z, intensity or .npy [N, ≥4]; without one the frame is
    generated.

    Raises:
        EdgeqError: see `edgeq.export`; or the task is no lidar detector, or there is no such frame.
    """
    model = model if isinstance(model, QuantizedModel) else load(model)
    refuse_beyond(model.integers, model.said, backends.backend(to).target, to)
    if folder is None and model.folder is None:
        raise EdgeqError("the model is not saved yet: call model.save(folder) first, or name a folder for the bundle")
    where = Path(folder) if folder is not None else Path(str(model.folder)) / "bundle" / to
    try:
        frame = runner.read_points(Path(points)) if points is not None else scene(0, HDL64_FRONT).points
    except (OSError, ValueError) as error:
        raise EdgeqError(f"golden frame: {error}") from error
    write(model, to, where, frame)
    return where


def write(model: QuantizedModel, to: str, folder: Path, points: NDArray[np.float32]) -> list[str]:
    """Write `folder` whole or not at all: the parts lowered to backend `to` and everything to run them.

    A pillar detector is split as practice does: pillar network, scatter on the host, dense network; a voxel detector is
    one part, its tables are inputs. points [N, ≥4]: the golden frame. Returns the artefacts' names.

    Raises:
        EdgeqError: the model's task says nothing of a pipeline, or the backend cannot lower a part.
    """
    settings = _settings(model)
    runtime = backends.runtime_of(to)
    if not backends.installed(to):
        raise EdgeqError(f"backend {to} is not installed: pip install 'edgeq[{runtime}]'")
    if to in backends.VARIANTS and backends.VARIANTS[to].machine == "hexagon":
        raise EdgeqError(
            f"a bundle is run by Python, which {to} has not: export the detector, and prepare its inputs elsewhere"
        )
    with replacing(folder, "pipeline.json", "lidar bundle") as part:
        described = []
        for piece in parts(model, settings):
            options: dict[str, Any] = {"io": "float"} if backends.RUNTIMES[runtime].io else {}
            artifact = backends.backend(to).lower(piece.program, part, name=piece.name, layers=piece.labels, **options)
            described.append(
                {
                    "name": piece.name,
                    "file": artifact.path.name,
                    "sha256": hash_of(artifact.path),
                    "inputs": [dataclasses.asdict(i) for i in piece.inputs],
                    "outputs": [dataclasses.asdict(o) for o in piece.outputs],
                    "coverage": [dataclasses.asdict(row) for row in artifact.coverage],
                }
            )
        said = {"format": 1, "name": model.name, "runtime": runtime, "parts": described, **settings}
        if settings["encoder"]["kind"] == "pillars":
            said["grid"] = grid(settings["encoder"]["point_range"], settings["encoder"]["pillar_size"])
        (part / "pipeline.json").write_text(json.dumps(plain(said), indent=1) + "\n")
        code = part / "lidar"
        code.mkdir()
        for name in CODE:
            shutil.copy(Path(__file__).parent / f"{name}.py", code / f"{name}.py")
        shutil.copy(backends.engine(to), code / "engine.py")
        points = np.ascontiguousarray(points[:, :4], np.float32)
        points.tofile(part / "golden_points.bin")
        boxes = golden(model, to, settings, points)
        (part / "golden_boxes.json").write_text(json.dumps(boxes, indent=1) + "\n")
    if not boxes:
        warnings.warn(
            f"{folder}: the golden frame has no boxes, so the bundle's --check compares none; give a frame in which the "
            "detector finds something, as edgeq lidar bundle … --points FILE",
            EdgeqWarning,
            stacklevel=3,
        )
    return [str(row["file"]) for row in described]


def _settings(model: QuantizedModel) -> dict[str, Any]:
    """The pipeline of the model's task, complete.

    Raises:
        EdgeqError: the task says nothing of a pipeline, or it lacks something.
    """
    settings: dict[str, Any] | None = (model.preprocessing or {}).get("pipeline")
    if not settings:
        raise EdgeqError(f'{model.name} is no lidar detector: its task file has no PREPROCESSING = {{"pipeline": …}}')
    try:
        for name in pipeline.NEEDED:
            pipeline.part(settings, name)
        if "split" in settings and not {"rows", "image"} <= set(settings["split"] or ()):
            raise ValueError("the pipeline's split needs rows and image, the layers on both sides of the scatter")
    except ValueError as error:
        raise EdgeqError(f"{model.name}, PREPROCESSING: {error}") from error
    return settings


def parts(model: QuantizedModel, settings: dict[str, Any]) -> list[QuantizedModel]:
    """The programs of a bundle: `pillars` and `dense`, cut on both sides of the scatter, or the whole `network`."""
    split = settings.get("split")
    if split is None:
        return [dataclasses.replace(model, name="network")]
    return [
        excerpt(model, None, (split["rows"],), "pillars"),
        excerpt(model, (split["image"],), None, "dense"),
    ]


def golden(
    model: QuantizedModel, to: str, settings: dict[str, Any], points: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """The boxes that the runtime's default kernels must find in `points`, by simulation of the whole program."""
    prepared = pipeline.prepare(points, settings)
    if prepared.ignored == prepared.points:  # as the runner does
        return []
    inputs = [torch.from_numpy(a) for a in prepared.inputs]
    heads = model.simulate(inputs, backends.backend(to).target.arithmetic)
    named = dict(zip(settings["head"]["outputs"], (h.numpy() for h in heads), strict=True))
    return runner.rounded(*pipeline.boxes(named, settings))
