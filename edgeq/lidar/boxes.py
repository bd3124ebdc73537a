"""Boxes in the lidar frame: corners, rotated overlap, suppression, the points inside. Numpy alone, so that it can be shipped.

A box is seven numbers: x, y, z of its centre, length, width, height in metres, yaw in radians counter-clockwise about z,
0 when the length lies along x. "BEV" (bird's-eye view) is the rectangle x, y, length, width, yaw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float64]


def wrap(angle: Array, low: float = -np.pi, period: float = 2 * np.pi) -> Floats:
    """`angle` (radians, any shape) moved by whole periods into [low, low + period)."""
    angle = np.asarray(angle, np.float64)
    return np.asarray(angle - np.floor((angle - low) / period) * period)


def corners_bev(boxes: Array) -> Floats:
    """[M, 7] → x, y of each box's four corners, counter-clockwise from front left, [M, 4, 2]."""
    boxes = _checked(boxes)
    along = np.array([0.5, -0.5, -0.5, 0.5]) * boxes[:, 3:4]
    across = np.array([0.5, 0.5, -0.5, -0.5]) * boxes[:, 4:5]
    cos, sin = np.cos(boxes[:, 6:7]), np.sin(boxes[:, 6:7])
    x = boxes[:, 0:1] + along * cos - across * sin
    y = boxes[:, 1:2] + along * sin + across * cos
    return np.stack([x, y], axis=2)


def iou_bev(a: Array, b: Array) -> Floats:
    """Intersection over union of the rotated rectangles of `a` [N, 7] and `b` [M, 7], [N, M]; 0 where both are empty."""
    a, b = _checked(a), _checked(b)
    return _ratio(_intersection_bev(a, b), a[:, 3] * a[:, 4], b[:, 3] * b[:, 4])


def iou_3d(a: Array, b: Array) -> Floats:
    """Intersection over union of the upright boxes of `a` [N, 7] and `b` [M, 7], [N, M]; 0 where both are empty."""
    a, b = _checked(a), _checked(b)
    top = np.minimum.outer(a[:, 2] + a[:, 5] / 2, b[:, 2] + b[:, 5] / 2)
    bottom = np.maximum.outer(a[:, 2] - a[:, 5] / 2, b[:, 2] - b[:, 5] / 2)
    shared = _intersection_bev(a, b) * np.maximum(top - bottom, 0)
    return _ratio(shared, a[:, 3:6].prod(1), b[:, 3:6].prod(1))


def nms(boxes: Array, scores: Array, iou_threshold: float, limit: int | None = None) -> NDArray[np.int64]:
    """Greedy non-maximum suppression: indices of the boxes kept, best score first, equal scores in their given order.

    boxes: [K, 7]; scores: [K]. A box goes when its BEV overlap with a better one that stays is above `iou_threshold`.
    limit: keep at most that many.
    """
    boxes = _checked(boxes)
    order = np.argsort(-np.asarray(scores), kind="stable")
    kept: list[int] = []
    while len(order) and (limit is None or len(kept) < limit):
        best, order = order[0], order[1:]
        kept.append(int(best))
        order = order[iou_bev(boxes[best : best + 1], boxes[order])[0] <= iou_threshold]
    return np.array(kept, np.int64)


def inside(points: Array, boxes: Array) -> NDArray[np.bool_]:
    """Which of the `points` [N, 3 or more] lie in which of the `boxes` [M, 7], faces included, [M, N]."""
    boxes = _checked(boxes)
    result = np.zeros((len(boxes), len(points)), np.bool_)
    for row, (x, y, z, length, width, height, yaw) in zip(result, boxes, strict=True):
        # a square around the footprint first: most points lie far from most boxes
        reach = np.hypot(length, width) / 2
        near = np.flatnonzero((np.abs(points[:, 0] - x) <= reach) & (np.abs(points[:, 1] - y) <= reach))
        dx, dy, dz = points[near, 0] - x, points[near, 1] - y, points[near, 2] - z
        along, across = dx * np.cos(yaw) + dy * np.sin(yaw), dy * np.cos(yaw) - dx * np.sin(yaw)
        row[near] = (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2) & (np.abs(dz) <= height / 2)
    return result


def count_inside(points: Array, boxes: Array) -> NDArray[np.int64]:
    """How many of the `points` [N, 3 or more] lie in each of the `boxes` [M, 7], [M]."""
    counts: NDArray[np.int64] = inside(points, boxes).sum(1, dtype=np.int64)
    return counts


def _checked(boxes: Array) -> Floats:
    """`boxes` as float64 [M, 7].

    Raises:
        ValueError: another shape.
    """
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 7:
        raise ValueError(
            f"boxes must be an array [M, 7] of x, y, z, l, w, h, yaw, not one of shape {list(boxes.shape)}"
        )
    return boxes


def _ratio(shared: Floats, a: Floats, b: Floats) -> Floats:
    """Intersections [N, M] over unions, from the areas or volumes a [N] and b [M]."""
    union = np.add.outer(a, b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _intersection_bev(a: Floats, b: Floats) -> Floats:
    """Area shared by the rotated rectangles of a [N, 7] and b [M, 7], [N, M].

    Only pairs whose circumscribed circles meet are looked at. In the frame of a's rectangle R, every point is moved to
    the nearest point of R. That moves b's outline to one that winds about each inner point of R as often as before and
    about no other, so the area within it, by Green's theorem, is the intersection. Each edge becomes a chain of straight
    pieces that bends where the edge crosses one of the four lines that bound R.
    """
    result = np.zeros((len(a), len(b)))
    radius_a, radius_b = np.hypot(a[:, 3], a[:, 4]) / 2, np.hypot(b[:, 3], b[:, 4]) / 2
    gap = np.hypot(np.subtract.outer(a[:, 0], b[:, 0]), np.subtract.outer(a[:, 1], b[:, 1]))
    rows, columns = np.nonzero(gap < np.add.outer(radius_a, radius_b))
    if not len(rows):
        return result
    a, b = a[rows], b[columns]
    cos, sin = np.cos(a[:, 6]), np.sin(a[:, 6])
    moved = b.copy()
    dx, dy = b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
    moved[:, 0], moved[:, 1], moved[:, 6] = dx * cos + dy * sin, dy * cos - dx * sin, b[:, 6] - a[:, 6]
    half = a[:, None, 3:5] / 2
    start = corners_bev(moved)  # [pairs, 4, 2]
    edge = np.roll(start, -1, axis=1) - start
    with np.errstate(divide="ignore", invalid="ignore"):
        bends = np.concatenate([(-half - start) / edge, (half - start) / edge], axis=2)
    # an edge parallel to a line never crosses it (inf), or lies on it (nan): then it need not bend
    bends = np.clip(np.nan_to_num(bends, nan=0.0), 0, 1)
    along = np.pad(np.sort(bends, axis=2), ((0, 0), (0, 0), (1, 1)), constant_values=(0, 1))
    outline = np.clip(start[:, :, None] + along[..., None] * edge[:, :, None], -half[:, :, None], half[:, :, None])
    x, y = outline[..., 0], outline[..., 1]
    area = ((x[..., 1:] + x[..., :-1]) * np.diff(y)).sum((1, 2)) / 2
    result[rows, columns] = np.maximum(area, 0)
    return result
