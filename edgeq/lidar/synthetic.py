"""Calibration and evaluation on generated scenes: every seed is a scene, and no two uses share one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

from torch import Tensor

from edgeq.lidar.detectors import Detector
from edgeq.lidar.evaluate import agreement, summary
from edgeq.lidar.frame import Frame
from edgeq.lidar.scenes import HDL64_FRONT, scene
from edgeq.lidar.tally import Tally, inputs

EVALUATION: Final = 0  # seeds 0 to 499
CALIBRATION: Final = 10_000
TRAINING: Final = 1_000_000  # and on


def frames(count: int, first: int = EVALUATION) -> Iterator[Frame]:
    """Scenes of the forward quarter, seeds `first` and on."""
    return (scene(first + i, HDL64_FRONT) for i in range(count))


def calibration(detector: Detector, count: int = 64) -> Iterator[tuple[Tensor, ...]]:
    """Inputs from scenes that no evaluation sees; EDGEQ_FRAMES of them where that is set."""
    wanted = int(os.environ.get("EDGEQ_FRAMES", count))
    clouds = (frame.points for frame in frames(wanted, CALIBRATION))
    return inputs(clouds, detector.pipeline, f"calibration of {detector.name}")


def evaluate(detector: Detector, predict: Callable[..., tuple[Tensor, ...]], count: int = 20) -> dict[str, float]:
    """AP (R40, BEV) by class on unseen scenes, EDGEQ_LIMIT of them where that is set, and vehicles' agreement with float."""
    seen = list(frames(int(os.environ.get("EDGEQ_LIMIT", count))))
    tally, network = Tally(), detector.trained()
    found = [detector.detect(f.points, predict, tally=tally) for f in seen]
    tally.warn(f"evaluation of {detector.name}")
    wanted = [detector.detect(f.points, network, tally=tally) for f in seen]
    by_class = summary(found, seen, detector.pipeline["encoder"]["point_range"], detector.pipeline["head"]["classes"])
    return {**by_class, "agreement": agreement(found, wanted, "Vehicle")}
