"""The main job on what the package carries: an image classifier, and a lidar detector."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from edgeq import api, backends
from edgeq.assembly import silent
from edgeq.devices import host
from edgeq.fault import Told
from edgeq.graph.package import QuantizedModel
from edgeq.pages.words import speed
from edgeq.spec import EdgeqError, Progress
from edgeq.task import Task, load_task

CALIBRATION = 16  # scenes; docs/results.md has the numbers of 64
EVALUATION = 40
PICTURES = 4
REAL = ("000005", "000031", "001985")  # KITTI frames drawn where EDGEQ_DATA has them


def image(output: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """EfficientNet-Lite0: quantize, export to every runtime, verify, profile, report.

    Returns one plain object: network, device, versions, float_metric, qdq_metric and, per backend, artefact, parity,
    accuracy, latency and operator counts.
    """
    model = api.quantize(_example("efficientnet_lite0"), output=output, progress=progress)
    parity, rows = _everywhere(model, 4, progress)
    return {
        "network": "EfficientNet-Lite0 (ImageNet)",
        "device": host.describe(),
        "versions": backends.versions(),
        "report": str(api.report(model)),
        "float_metric": parity["float_metric"],
        "qdq_metric": parity["qdq_metric"],
        "backends": rows,
    }


def lidar(output: str | Path, *, progress: Progress = silent) -> dict[str, Any]:
    """CenterPoint with pillars on generated scenes: max-min and LiDAR-PTQ beside float, bundles, and a page with pictures.

    Returns one plain object: network, device, versions, frames, ap (float, minmax, lidar_ptq: AP|R40 of vehicles, BEV,
    IoU 0.7), agreement with the float boxes, report and, per backend, what `image` gives, and the bundle's folder.
    """
    from edgeq.lidar import synthetic
    from edgeq.lidar.bundle import bundle
    from edgeq.lidar.detectors import DETECTORS
    from edgeq.lidar.evaluate import agreement, summary
    from edgeq.lidar.frame import Detections
    from edgeq.pages.bev import write_bev

    detector = DETECTORS["centerpoint_pillar"]
    task = dataclasses.replace(
        load_task(_example(detector.name)), calibration=lambda: synthetic.calibration(detector, CALIBRATION)
    )
    frames = list(synthetic.frames(int(os.environ.get("EDGEQ_LIMIT", EVALUATION))))
    where, classes = detector.pipeline["encoder"]["point_range"], detector.pipeline["head"]["classes"]

    def detected(name: str, model: QuantizedModel, which: str) -> list[Detections]:
        run = getattr(model, which)
        found = []
        for index, frame in enumerate(frames):
            progress(f"boxes of {name}", index, len(frames))
            found.append(detector.detect(frame.points, lambda *inputs: run(inputs)))
        return found

    plain = _quantized(task, "minmax", None, progress)
    model = _quantized(task, "lidar-ptq", Path(output), progress)
    boxes = {
        "float": detected("float", model, "float"),
        "minmax": detected("max-min", plain, "qdq"),
        "lidar_ptq": detected("LiDAR-PTQ", model, "qdq"),
    }
    _, rows = _everywhere(model, 2, progress)
    for name in rows:
        progress(f"bundle for {name}", 0, None)
        rows[name]["bundle"] = str(bundle(model, name))
    page = Path(output) / "lidar.html"
    found = {
        "network": "CenterPoint-Pillar (synthetic scenes)",
        "device": host.describe(),
        "versions": backends.versions(),
        "frames": {"calibration": CALIBRATION, "evaluation": len(frames)},
        "ap": {name: summary(b, frames, where, classes)["vehicle_ap"] for name, b in boxes.items()},
        "agreement": agreement(boxes["lidar_ptq"], boxes["float"], "Vehicle"),
        "report": str(page),
        "backends": rows,
    }
    progress("pictures", 0, None)
    write_bev(found, list(_pictures(detector, model)), page)
    return found


def _pictures(detector: Any, model: QuantizedModel) -> Iterable[Any]:
    """Some generated frames, then real ones where they are found, each with float and int8 boxes."""
    from edgeq.lidar import kitti, pipeline, synthetic
    from edgeq.lidar.evaluate import within
    from edgeq.pages.bev import Picture

    where = detector.pipeline["encoder"]["point_range"]
    chosen = [(frame, "generated scene") for frame in synthetic.frames(PICTURES)]
    data = Path(os.environ.get("EDGEQ_DATA", "../shared/data")) / "kitti" / "eval"
    if data.is_dir():
        chosen += [(frame, "KITTI, CC BY-NC-SA 3.0") for frame in kitti.read_frames(data, REAL)]
    for frame, source in chosen:
        ready = pipeline.prepare(frame.points, detector.pipeline)
        inputs = tuple(torch.from_numpy(a) for a in ready.inputs)
        floating, int8 = detector.boxes(model.float(inputs)), detector.boxes(model.qdq(inputs))
        truth = within(frame.labels, where) if frame.labels else None
        yield Picture(frame.name, source, frame.points, truth, floating, int8, ready.ignored, sum(ready.dropped))


def _everywhere(model: QuantizedModel, batches: int, progress: Progress) -> tuple[dict[str, Any], dict[str, Any]]:
    """Export to every runtime, verify and profile; what verify found, and a row per backend."""
    for name in backends.RUNTIMES:
        progress(f"export {name}", 0, None)
        api.export(model, name)
    parity = api.verify(model, batches=batches, progress=progress)
    latency = api.profile(model, runs=20, progress=progress)
    for name, row in (*parity["backends"].items(), *latency["backends"].items()):
        if "error" in row:
            raise (Told if row.get("fault") else EdgeqError)(f"{name}: {row['error']}")
    rows = {}
    for name, row in parity["backends"].items():
        int8, floating, _ = speed(latency["backends"][name])
        rows[name] = {
            **{k: row[k] for k in ("artifact", "max_lsb", "exact_share", "qdq_lsb", "metric", "kernels")},
            "latency_ms": {
                "int8": int8,
                "float": floating,
                "speedup_interval": latency["backends"][name].get("speedup_interval"),
            },
            **{k: row[k] for k in ("integer_ops", "table_ops", "eligible_ops", "float_ops")},
        }
    return parity, rows


def _quantized(task: Task, recipe: str, output: Path | None, progress: Progress) -> QuantizedModel:
    def named(stage: str, done: int, total: int | None) -> None:
        progress(f"{recipe}: {stage}", done, total)

    return api.quantize(task, recipe=recipe, output=output, progress=named)


def _example(name: str) -> Path:
    task = Path(__file__).parent / "examples" / f"{name}.py"
    if not task.is_file():  # an editable install maps the folder instead of copying it
        task = Path(__file__).resolve().parent.parent / "examples" / f"{name}.py"
    return task
