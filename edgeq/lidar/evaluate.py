"""How good a detector is on labelled frames, and how closely a quantized one follows its float twin."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeq.lidar.average_precision import IOU, FrameMatches, average_precision, match
from edgeq.lidar.frame import Detections, Frame, Labels

LEAST_POINTS = 5  # objects with fewer lidar points are neither taught nor counted
SURE = 0.3  # a float box of a lower score is no answer one must repeat, and repeating it is no mistake


def within(truth: Labels, point_range: Sequence[float]) -> Labels:
    """The objects whose centre lies in the range's x and y (low x, y, z, high x, y, z)."""
    low, high = np.array(point_range).reshape(2, 3)[:, :2]
    kept = np.flatnonzero(np.all((truth.boxes[:, :2] >= low) & (truth.boxes[:, :2] < high), axis=1))
    return Labels(
        truth.boxes[kept],
        tuple(truth.classes[i] for i in kept),
        truth.num_points[kept],
        truth.occlusion[kept],
        truth.truncation[kept],
        truth.bbox_height[kept],
    )


def matches(
    detections: Sequence[Detections],
    frames: Sequence[Frame],
    name: str,
    point_range: Sequence[float],
    iou: float | None = None,
) -> list[FrameMatches]:
    """BEV matches of class `name` with every object in range that has at least LEAST_POINTS points; see `match` for iou."""
    truth = [within(f.labels, point_range) for f in frames if f.labels is not None]
    return match(detections, truth, name, iou=iou, min_points=LEAST_POINTS)


def agreement(detections: Sequence[Detections], reference: Sequence[Detections], name: str, iou: float = 0.7) -> float:
    """AP|R40 (BEV) of `detections` with the boxes of `reference`, the float detector's, as ground truth; no labels needed.

    Reference boxes scored below SURE are ignored: neither missed nor false.
    """
    truth = []
    for found in reference:
        mine = np.flatnonzero(np.array([c == name for c in found.classes], bool))
        count = len(mine)
        # `match` ignores objects of few points: here a point is a thousandth of the score
        points = np.round(found.scores[mine] * 1000).astype(np.int64)
        names = ("Car" if name == "Vehicle" else name,) * count
        boxes = found.boxes[mine]
        truth.append(Labels(boxes, names, points, np.zeros(count, int), np.zeros(count), np.full(count, np.inf)))
    return average_precision(match(detections, truth, name, iou=iou, min_points=round(SURE * 1000)))


def summary(
    detections: Sequence[Detections], frames: Sequence[Frame], point_range: Sequence[float], classes: Sequence[str]
) -> dict[str, float]:
    """AP|R40 (BEV, IoU 0.7 for vehicles, 0.5 else) by class, lower-case name and `_ap`; NaN where no object counts."""
    return {
        f"{name.lower()}_ap": average_precision(matches(detections, frames, name, point_range))
        for name in classes
        if name in IOU
    }
