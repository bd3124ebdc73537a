"""CenterPoint with pillars on synthetic lidar scenes: vehicles, pedestrians and cyclists; weights come with edgeq.

The whole network is one graph: pillar encoder, scatter (a gather by a table), backbone, neck and centre heads. Copy this
file for a detector of your own: `PIPELINE` says how points become inputs and heads become boxes.
"""

import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from edgeq.lidar import pipeline
from edgeq.lidar.detectors import DETECTORS
from edgeq.lidar.evaluate import agreement, summary
from edgeq.lidar.positives import positives as task_guided
from edgeq.lidar.scenes import HDL64_FRONT, scene

DETECTOR = DETECTORS["centerpoint_pillar"]
PIPELINE = DETECTOR.pipeline
PREPROCESSING = {"pipeline": PIPELINE}
CALIBRATION = 10_000  # seed of the first calibration scene; evaluation scenes are 0 to 499


def model() -> nn.Module:
    """The detector with its trained weights, 1.1 M parameters."""
    return DETECTOR.trained()


def example_inputs() -> tuple[Tensor, ...]:
    """Pillars float32 [1, 10, 10240, 16] and the table int64 [65536] of one scene."""
    return prepared(CALIBRATION)


def calibration(count: int = 64) -> Iterator[tuple[Tensor, ...]]:
    """Scenes that no evaluation sees; EDGEQ_FRAMES of them."""
    return (prepared(CALIBRATION + i) for i in range(int(os.environ.get("EDGEQ_FRAMES", count))))


def positives(outputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    """Where the float network's final boxes are, one mask per head: the positives of LiDAR-PTQ."""
    return task_guided(outputs, PIPELINE["head"])


def evaluate(predict: Callable[..., tuple[Tensor, ...]]) -> dict[str, float]:
    """AP (R40, BEV) by class on EDGEQ_LIMIT unseen scenes, and vehicle agreement with the float network's boxes."""
    frames = [scene(seed, HDL64_FRONT) for seed in range(int(os.environ.get("EDGEQ_LIMIT", "20")))]
    found = [DETECTOR.detect(f.points, predict) for f in frames]
    network = model()
    wanted = [DETECTOR.detect(f.points, network) for f in frames]
    by_class = summary(found, frames, PIPELINE["encoder"]["point_range"], PIPELINE["head"]["classes"])
    return {**by_class, "agreement": agreement(found, wanted, "Vehicle")}


def prepared(seed: int) -> tuple[Tensor, ...]:
    """One scene as the network's inputs."""
    ready = pipeline.prepare(scene(seed, HDL64_FRONT).points, PIPELINE)
    return tuple(torch.from_numpy(a) for a in ready.inputs)
