"""One lidar sweep with its labels, and what a detector found in it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Labels:
    """Ground truth of one frame, M objects in the lidar frame.

    boxes: [M, 7], centre x, y, z, l, w, h in metres, yaw in radians.
    classes: KITTI's names ("Car", "Van", "Pedestrian", "Cyclist", ...).
    num_points: [M], lidar points inside the box; -1 when nobody counted.
    occlusion: [M], 0 visible, 1 partly, 2 largely occluded, 3 unknown (KITTI's levels).
    truncation: [M], share of the object that leaves the camera image, 0..1.
    bbox_height: [M], height of the box in the camera image in pixels; inf when there is no camera.
    """

    boxes: Floats
    classes: tuple[str, ...]
    num_points: Integers
    occlusion: Integers
    truncation: Floats
    bbox_height: Floats

    def __post_init__(self) -> None:
        _check(self, len(self.classes))


def labels(boxes: Floats, classes: tuple[str, ...], num_points: Integers | None = None) -> Labels:
    """Labels of objects that no camera saw: never occluded, never truncated, of unlimited height in the image."""
    count = len(classes)
    return Labels(
        boxes=boxes,
        classes=classes,
        num_points=np.full(count, -1) if num_points is None else num_points,
        occlusion=np.zeros(count, np.int64),
        truncation=np.zeros(count),
        bbox_height=np.full(count, np.inf),
    )


@dataclass(frozen=True, slots=True)
class Frame:
    """One sweep: points float32 [N, 4] = x, y, z in metres and intensity in 0..1; labels, or None where there are none."""

    name: str
    points: NDArray[np.float32]
    labels: Labels | None


@dataclass(frozen=True, slots=True)
class Detections:
    """What a detector found in one frame: boxes [K, 7] as in `Labels`, scores [K] in 0..1, K class names."""

    boxes: Floats
    scores: Floats
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        _check(self, len(self.classes))


def _check(record: Labels | Detections, count: int) -> None:
    """Every array of `record` has `count` rows, `boxes` seven columns.

    Raises:
        ValueError: one has not.
    """
    for name in (f.name for f in fields(record) if f.name != "classes"):
        shape = (count, 7) if name == "boxes" else (count,)
        found = np.shape(getattr(record, name))
        if found != shape:
            raise ValueError(f"{name} must have the shape {list(shape)} ({count} classes are given), not {list(found)}")
