"""PointPillars on KITTI: a real anchor-head detector, from pillars to heads.

Weights and frames come from the folder EDGEQ_DATA (pointpillars_kitti/, kitti/); KITTI is CC BY-NC-SA 3.0. The network is
one graph: pillar encoder, scatter (a gather by a table), backbone and heads; `PIPELINE` says what happens around it.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeq.lidar import kitti, pipeline
from edgeq.lidar.anchors import anchor_head
from edgeq.lidar.average_precision import average_precision, match
from edgeq.lidar.detectors import SPLIT, Detector
from edgeq.lidar.evaluate import agreement
from edgeq.lidar.networks import PointPillars
from edgeq.lidar.positives import positives as task_guided
from edgeq.lidar.tally import inputs

DATA = Path(os.environ.get("EDGEQ_DATA", "../shared/data"))
META = json.loads((DATA / "pointpillars_kitti" / "meta.json").read_text()) if DATA.is_dir() else {}
# frames of the drive that is used for evaluation elsewhere
DRIVE_0005 = {"000310", "000339", "000685", "002024", "003015", "004371", "004558", "004736", "005083", "007414"}
PIPELINE = META and {
    "encoder": {
        "kind": "pillars",
        "point_range": META["range"],
        "pillar_size": META["voxel"][:2],
        "max_points": META["max_points"],
        "max_pillars": 10240,  # the camera's view of a sweep fills 5,000 to 8,000
        "feature_weight": META["feature_weight"],
        "feature_bias": META["feature_bias"],
    },
    "head": anchor_head(META),
    "split": SPLIT,
}
PREPROCESSING = {"pipeline": PIPELINE}


def model() -> nn.Module:
    """The detector with its trained weights, 2.25 M parameters."""
    stored = load_file(DATA / "pointpillars_kitti" / "pointpillars_kitti_fp32.safetensors")
    weights = {k.removeprefix("backbone."): v for k, v in stored.items() if k.startswith("backbone.")}
    weights["encoder.linear.0.weight"] = stored["pfn.linear.weight"][:, :, None, None]
    weights["encoder.linear.0.bias"] = stored["pfn.linear.bias"]
    network = PointPillars()
    network.load_state_dict(weights)
    return network.eval()


DETECTOR = Detector("pointpillars_kitti", model, PIPELINE)


def example_inputs() -> tuple[Tensor, ...]:
    """Pillars float32 [1, 10, 10240, 32] and the table int64 [214272] of one training frame."""
    return next(calibration(1))


def calibration(count: int = 8) -> Iterator[tuple[Tensor, ...]]:
    """KITTI training frames without those of drive 0005; EDGEQ_FRAMES of them."""
    files = sorted((DATA / "kitti" / "train" / "velodyne").iterdir())
    names = [p.stem for p in files if p.stem not in DRIVE_0005][: int(os.environ.get("EDGEQ_FRAMES", count))]
    clouds = (frame.points for frame in kitti.read_frames(DATA / "kitti" / "train", names))
    return inputs(clouds, PIPELINE, "calibration")


def positives(outputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    """Where the float network's final boxes are, one mask per head: the positives of LiDAR-PTQ."""
    return task_guided(outputs, PIPELINE["head"])


def evaluate(predict: Callable[..., tuple[Tensor, ...]]) -> dict[str, float]:
    """On EDGEQ_LIMIT evaluation frames: car AP (R40, IoU 0.7), agreement with float's boxes, SQNR in dB of each head."""
    frames = list(kitti.read_frames(DATA / "kitti" / "eval"))[: int(os.environ.get("EDGEQ_LIMIT", "12"))]
    network = model()
    signal, noise, found, wanted = np.zeros(3), np.zeros(3), [], []
    for given in inputs((f.points for f in frames), PIPELINE, "evaluation"):
        with torch.no_grad():
            heads = tuple(network(*given).values())
        answers = predict(*given)
        for i, (a, b) in enumerate(zip(heads, answers, strict=True)):
            signal[i] += float(a.double().square().sum())
            noise[i] += float((a - b).double().square().sum())
        wanted.append(DETECTOR.boxes(heads))
        found.append(DETECTOR.boxes(answers))
    decibel = 10 * np.log10(signal / np.maximum(noise, 1e-30))
    truth = [frame.labels for frame in frames if frame.labels]
    return {
        "car_ap_bev": average_precision(match(found, truth, "Car")),
        "car_ap_3d": average_precision(match(found, truth, "Car", "3d")),
        "agreement": agreement(found, wanted, "Car"),
        **{f"{name}_sqnr_db": float(d) for name, d in zip(("cls", "box", "dir"), decibel, strict=True)},
    }


def prepared(points: np.ndarray) -> tuple[Tensor, ...]:
    """A cloud [N, 4] as the network's inputs."""
    return tuple(torch.from_numpy(a) for a in pipeline.prepare(points, PIPELINE).inputs)
