"""Point cloud → pillars → the features a PointPillars network reads (Lang et al. 2019, section 2.1). Numpy alone.

The ground plane is cut into cells of `pillar_size`; a pillar is what stands on one cell. Cells are numbered row by row,
y · W + x, so that a scatter to the BEV image [channels, H, W] is one indexed assignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pillars:
    """A fixed number P of pillars, the real ones first, in order of their cells.

    points: float32 [P, max_points, 4], x, y, z, intensity in order of arrival, zero where padded.
    num_points: int32 [P], points kept in each pillar; 0 marks a padded pillar.
    cells: int32 [P], y · W + x; H · W where padded, one past the image.
    dropped: pillars there was no room for.
    """

    points: NDArray[np.float32]
    num_points: NDArray[np.int32]
    cells: NDArray[np.int32]
    dropped: int


def grid(point_range: Sequence[float], pillar_size: Sequence[float]) -> tuple[int, int]:
    """(H, W): cells along y and along x of the range x, y, z low then x, y, z high, for pillars of `pillar_size` (x, y).

    Raises:
        ValueError: the range is not a whole number of pillars, to a thousandth of one.
    """
    cells = [(point_range[i + 3] - point_range[i]) / pillar_size[i] for i in (0, 1)]
    if any(c < 1 or abs(c - round(c)) > 1e-3 for c in cells):
        raise ValueError(
            f"range {list(point_range)} is not a whole number of pillars of {list(pillar_size[:2])} m along x and y"
        )
    return round(cells[1]), round(cells[0])


def pillarise(
    points: NDArray[Any], point_range: Sequence[float], pillar_size: Sequence[float], max_points: int, max_pillars: int
) -> Pillars:
    """Sort `points` [N, 4 or more: x, y, z, intensity] into pillars; the same cloud always gives the same pillars.

    Points outside `point_range` (upper bounds excluded) belong to no pillar, nor do points with a NaN or an infinity,
    which is how drivers write "no return". A pillar keeps its first `max_points` points. Beyond `max_pillars`, those
    with the fewest points go (see `fullest`); `Pillars.dropped` counts them. An empty cloud gives no pillars.

    Raises:
        ValueError: points of another shape, or a range that is not a whole number of pillars.
    """
    points = np.asarray(points, np.float32)
    if points.ndim != 2 or points.shape[1] < 4:
        raise ValueError(f"points must be an array [N, 4] of x, y, z, intensity, not one of shape {list(points.shape)}")
    height, width = grid(point_range, pillar_size)
    low, high = np.array(point_range, np.float32).reshape(2, 3)
    points = points[:, :4]
    valid = np.isfinite(points[:, 3])
    for axis in range(3):  # a comparison with NaN is false
        valid &= (points[:, axis] >= low[axis]) & (points[:, axis] < high[axis])
    points = points[valid]

    # rounding may put a point just below the upper bound one cell too far
    column = np.minimum(((points[:, 0] - low[0]) / np.float32(pillar_size[0])).astype(np.int32), width - 1)
    row = np.minimum(((points[:, 1] - low[1]) / np.float32(pillar_size[1])).astype(np.int32), height - 1)
    cell_of_point = row * np.int32(width) + column
    order = np.argsort(cell_of_point, kind="stable")
    points, cell_of_point = points[order], cell_of_point[order]
    first = np.flatnonzero(np.diff(cell_of_point, prepend=-1))  # where each pillar begins
    count = np.diff(first, append=len(points))
    dropped = max(len(first) - max_pillars, 0)
    if dropped:
        kept = fullest(count, cell_of_point[first], max_pillars)
        first, count = first[kept], count[kept]

    num_points = np.zeros(max_pillars, np.int32)
    num_points[: len(first)] = np.minimum(count, max_points)
    cells = np.full(max_pillars, height * width, np.int32)
    cells[: len(first)] = cell_of_point[first]
    filled = np.arange(max_points) < num_points[: len(first), None]
    result = np.zeros((max_pillars, max_points, 4), np.float32)
    result[: len(first)][filled] = points[(first[:, None] + np.arange(max_points))[filled]]
    return Pillars(result, num_points, cells, dropped)


def fullest(count: NDArray[Any], cells: NDArray[Any], limit: int) -> NDArray[np.intp]:
    """Indices of the `limit` cells of greatest `count`, rising; of cells alike, ones spread over all of the map stay.

    Cells alike are taken in the order of cell · 2654435761 mod 2³² (Knuth's multiplicative hash): in the order of cells,
    one side of the map would lose all of them.
    """
    spread = cells.astype(np.uint32) * np.uint32(2654435761)
    return np.sort(np.lexsort((spread, -count))[:limit])


def decorate(
    pillars: Pillars,
    point_range: Sequence[float],
    pillar_size: Sequence[float],
    weight: Sequence[float] | None = None,
    bias: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """The ten features of every point, float32 [P, max_points, 10], zero where padded.

    x, y, z, intensity, then x, y, z less the mean of the pillar's points, then x, y, z less the centre of its cell (z:
    less the middle of the range), all times `weight` [10] plus `bias` [10] where given.
    """
    _, width = grid(point_range, pillar_size)
    result = np.zeros((*pillars.points.shape[:2], 10), np.float32)
    real = int((pillars.num_points > 0).sum())
    points, count, cells = pillars.points[:real], pillars.num_points[:real], pillars.cells[:real]
    centre = np.empty((real, 3), np.float32)
    centre[:, 0] = (cells % width + 0.5) * pillar_size[0] + point_range[0]
    centre[:, 1] = (cells // width + 0.5) * pillar_size[1] + point_range[1]
    centre[:, 2] = (point_range[2] + point_range[5]) / 2
    mean = points[:, :, :3].sum(1) / count[:, None]

    filled = np.arange(points.shape[1]) < count[:, None]
    pillar = np.nonzero(filled)[0]
    flat = points[filled]
    features = np.concatenate([flat, flat[:, :3] - mean[pillar], flat[:, :3] - centre[pillar]], axis=1)
    if weight is not None:
        features *= np.asarray(weight, np.float32)
    if bias is not None:
        features += np.asarray(bias, np.float32)
    result[:real][filled] = features
    return result
