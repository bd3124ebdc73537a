"""Voxels and the neighbour tables that turn sparse 3D convolution into gather and linear; numpy only.

Sites are kept in the order of their cell (row y, column x, layer z: `(y·W + x)·D + z`). A table [N_out, 27] names for
each output site and tap the input row, N_in (the array's length, padding included) where that neighbour is empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pillars import fullest

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

TAPS: Ints = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(27, 3)


@dataclass(frozen=True, slots=True)
class VoxelSettings:
    """point_range: low x, y, z and high x, y, z in metres. grid: rows, columns, layers of level 1.

    limits: rows of each level's arrays; sites beyond a limit are dropped, those with the fewest points below them
    first, and counted.
    """

    point_range: tuple[float, float, float, float, float, float] = (0.0, -25.6, -3.0, 51.2, 25.6, 1.0)
    grid: tuple[int, int, int] = (256, 256, 20)
    limits: tuple[int, int, int] = (14336, 16384, 8192)


def settings(encoder: dict[str, Any]) -> VoxelSettings:
    """The `encoder` part of a pipeline as settings."""
    return VoxelSettings(tuple(encoder["point_range"]), tuple(encoder["grid"]), tuple(encoder["limits"]))


@dataclass(frozen=True, slots=True)
class Voxels:
    """Inputs of the sparse encoder, how many sites each level has, and how many of them were beyond its limit.

    features float32 [N1, 8]; tables int64: same1 [N1, 27], down2 [N2, 27], same2 [N2, 27], down3 [N3, 27], same3
    [N3, 27], cells [H3·W3·D3] → row of level 3, N3 where empty.
    """

    features: Floats
    same1: Ints
    down2: Ints
    same2: Ints
    down3: Ints
    same3: Ints
    cells: Ints
    found: tuple[int, int, int]
    dropped: tuple[int, int, int]

    def inputs(self) -> tuple[Floats | Ints, ...]:
        """What CenterPointVoxel.forward takes, in its order."""
        return self.features, self.same1, self.down2, self.same2, self.down3, self.same3, self.cells


def voxelise(points: Floats, settings: VoxelSettings, padded: bool = True) -> Voxels:
    """Voxels of a cloud [N, ≥4] (x, y, z in metres, intensity 0..1), with tables for three levels, each half as fine.

    Points outside the range, and those with NaN or Inf, are left out; an empty cloud gives no voxels. `padded` fills
    every array up to the limits, as a static graph wants it; else arrays are as long as they need be.

    Raises:
        ValueError: the cloud has fewer than four columns.
    """
    if points.ndim != 2 or points.shape[1] < 4:
        raise ValueError(f"a point cloud needs four columns (x, y, z, intensity), this one has shape {points.shape}")
    points = points[:, :4].astype(np.float32)
    low = np.array(settings.point_range[:3], np.float32)
    high = np.array(settings.point_range[3:], np.float32)
    rows, columns, layers = settings.grid
    shape = np.array([columns, rows, layers])
    size = ((high - low) / shape).astype(np.float32)
    valid = np.isfinite(points[:, 3]) & np.all((points[:, :3] >= low) & (points[:, :3] < high), axis=1)
    points = points[valid]
    site = np.minimum(((points[:, :3] - low) / size).astype(np.int64), shape - 1)
    cell = (site[:, 1] * columns + site[:, 0]) * layers + site[:, 2]
    cells, owner, count = np.unique(cell, return_inverse=True, return_counts=True)

    limits = settings.limits if padded else (len(cells), 1 << 40, 1 << 40)
    level1 = _Level(settings.grid, cells, count, limits[0], padded)
    features = _features(points, owner, cells, settings, size, low)[level1.kept]
    level2 = level1.halved(limits[1], padded)
    level3 = level2.halved(limits[2], padded)
    return Voxels(
        np.concatenate([features, np.zeros((level1.rows - len(features), features.shape[1]), np.float32)]),
        level1.table(level1, 1),
        level1.table(level2, 2),
        level2.table(level2, 1),
        level2.table(level3, 2),
        level3.table(level3, 1),
        level3.lookup(),
        (level1.found, level2.found, level3.found),
        (level1.dropped, level2.dropped, level3.dropped),
    )


def _features(points: Floats, owner: Ints, cells: Ints, settings: VoxelSettings, size: Floats, low: Floats) -> Floats:
    """Per voxel, all near [-1, 1]: mean offset from its centre in half sizes (3), mean intensity, log count, centre (3)."""
    _, columns, layers = settings.grid
    site = np.stack([cells // layers % columns, cells // layers // columns, cells % layers], 1)
    centre = (site + 0.5) * size + low
    count = np.bincount(owner, minlength=len(cells)).astype(np.float64)
    mean = np.stack([np.bincount(owner, points[:, i], len(cells)) for i in range(4)], 1) / np.maximum(count, 1)[:, None]
    high = np.array(settings.point_range[3:])
    where = (centre - low) / (high - low) * 2 - 1
    columns_ = [(mean[:, :3] - centre) / (size / 2), mean[:, 3:], np.log(np.maximum(count, 1))[:, None] / 3, where]
    return np.concatenate(columns_, 1).astype(np.float32)


class _Level:
    """Active sites of one level: coordinates (y, x, z) and the dense lookup that finds a site's row.

    count: points below each of `cells`. kept: which of them there was room for (see `fullest`).
    """

    def __init__(self, grid: tuple[int, int, int], cells: Ints, count: Ints, limit: int, padded: bool) -> None:
        self.grid = grid
        self.found = len(cells)
        self.dropped = max(0, self.found - limit)
        self.kept = fullest(count, cells, limit) if self.dropped else np.arange(len(cells))
        self.count = count[self.kept]
        self.rows = limit if padded else len(self.kept)
        self.sites = np.stack(np.unravel_index(cells[self.kept], grid), 1)

    def lookup(self, border: int = 0) -> Ints:
        """Cell → row, `rows` where empty; flat, with `border` empty cells around."""
        dense = np.full([n + 2 * border for n in self.grid], self.rows, np.int64)
        dense[tuple((self.sites + border).T)] = np.arange(len(self.sites))
        return dense.ravel()

    def halved(self, limit: int, padded: bool) -> _Level:
        """The next level: kernel 3, stride 2, padding 1; a site is active where any of its taps meets an active one."""
        grid = ((self.grid[0] + 1) // 2, (self.grid[1] + 1) // 2, (self.grid[2] + 1) // 2)
        below = np.zeros(grid, np.int64)
        for tap in TAPS:
            site = self.sites - tap
            meets = np.all((site % 2 == 0) & (site >= 0) & (site // 2 < grid), axis=1)
            below[tuple((site[meets] // 2).T)] += self.count[meets]  # a tap meets each site of the next level once
        cells = np.flatnonzero(below)
        return _Level(grid, cells, below.ravel()[cells], limit, padded)

    def table(self, outputs: _Level, stride: int) -> Ints:
        """Rows of this level under each tap of each output site [outputs.rows, 27]."""
        bordered = np.array(self.grid) + 2
        origin = outputs.sites * stride + 1
        flat = np.ravel_multi_index(tuple(origin.T), tuple(bordered))
        steps = TAPS @ np.array([bordered[1] * bordered[2], bordered[2], 1])
        table = np.full((outputs.rows, 27), self.rows, np.int64)
        table[: len(flat)] = self.lookup(border=1)[flat[:, None] + steps]
        return table
