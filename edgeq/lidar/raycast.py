"""A spinning lidar over a ground surface and convex shapes: nearest hit per ray, noise, lost returns, intensity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Pose = tuple[float, float, float, float]
Height = Callable[[Array, Array], Array]

WEAKEST = 2e-6  # reflectance × cosine / m²: at this strength 63 % of the returns are seen (asphalt at about 50 m)
GROUND = -1
NOISE_LIMIT = 5.0  # standard deviations
NEAREST, FARTHEST, GROUND_STEPS = 1.0, 100.0, 112  # where along each azimuth the ground is sampled, metres


@dataclass(frozen=True, slots=True)
class Sensor:
    """A spinning lidar at the origin: `elevations` in radians, rising; lengths in metres; `field_of_view` about +x."""

    elevations: tuple[float, ...]
    azimuth_steps: int
    height: float
    max_range: float = 90.0
    range_noise: float = 0.02
    dropout: float = 0.02
    field_of_view: float | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: the elevations do not rise, or the range is beyond the ground that is sampled."""
        if any(low >= high for low, high in pairwise(self.elevations)):
            raise ValueError("a sensor's elevations must rise from the lowest beam to the highest")
        if not 0 < self.max_range <= FARTHEST:
            raise ValueError(f"a sensor's max_range must lie within 0..{FARTHEST:.0f} m, not be {self.max_range}")


def _degrees(*pieces: tuple[float, float, int]) -> tuple[float, ...]:
    return tuple(float(np.radians(e)) for piece in pieces for e in np.linspace(*piece))


# Velodyne HDL-64E S2 manual: 32 lower lasers 1/2 degree apart, 32 upper ones 1/3 degree apart; at 10 Hz about 2083 firings
# a turn. KITTI mounts it 1.73 m above the ground (Geiger et al. 2013, Vision meets robotics, figure 3).
HDL64 = Sensor(_degrees((-24.8, -8.83, 32), (-8.33, 2.0, 32)), azimuth_steps=2083, height=1.73)
HDL64_FRONT = replace(HDL64, field_of_view=float(np.pi / 2))
# Velodyne HDL-32E manual; nuScenes mounts it 1.84 m above the ground and turns it at 20 Hz (about 1084 firings a turn).
HDL32 = Sensor(_degrees((-30.67, 10.67, 32)), azimuth_steps=1084, height=1.84, max_range=80.0)


@dataclass(frozen=True, slots=True)
class Material:
    """`reflectance` 0..1; a ray returns from the surface with probability `surface`, then from inside at `density` per metre."""

    reflectance: float
    surface: float = 1.0
    density: float = 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """A convex body in the box `lower`..`upper` of its owner's frame (origin on the ground, x along its length).

    `faces` [F, 4] are half-spaces n·p <= c, rows (n, c), |n| = 1; None is the ellipsoid that fills the box.
    """

    lower: tuple[float, float, float]
    upper: tuple[float, float, float]
    faces: Array | None
    material: Material


@dataclass(frozen=True, slots=True)
class Body:
    """Shapes that stand together at `pose` = x, y, z of the ground point in the sensor's frame, and yaw."""

    pose: Pose
    shapes: tuple[Shape, ...]


def cast(
    bodies: Sequence[Body],
    ground: Height,
    roughness: Height,
    reflectance: Height,
    sensor: Sensor,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The scan: points float32 [N, 4] (x, y, z, intensity) and the body each comes from, int64 [N] (`GROUND` for the ground).

    `ground`, `roughness` and `reflectance` give the surface's height, its standard deviation (m) and its reflectance at x, y.
    """
    elevations = np.asarray(sensor.elevations)
    step = 2 * np.pi / sensor.azimuth_steps
    turn = np.pi if sensor.field_of_view is None else sensor.field_of_view / 2
    columns = round(2 * turn / step)
    # each laser fires at its own phase within a step
    azimuths = (-turn + step * (np.arange(columns) + rng.random((len(elevations), 1)))).astype(np.float32)
    cos, sin = np.cos(elevations)[:, None], np.sin(elevations)[:, None]
    rays = np.empty((*azimuths.shape, 3), np.float32)
    rays[..., 0], rays[..., 1], rays[..., 2] = cos * np.cos(azimuths), cos * np.sin(azimuths), sin

    cosine = np.broadcast_to(np.abs(sin), azimuths.shape).astype(np.float32)
    shapes = [(i, body.pose, shape) for i, body in enumerate(bodies) for shape in body.shapes]
    nearest = np.full(azimuths.shape, len(shapes))  # the shape that is hit; the last is the ground
    distance = _ground_hits(elevations, azimuths.mean(0), ground, roughness, rng)
    if shapes:
        near, left, right, low, high = _windows([(pose, shape) for _, pose, shape in shapes], elevations)
        order = np.argsort(near)
        for k in order[near[order] < sensor.max_range]:
            _, pose, shape = shapes[k]
            first = int(np.floor((left[k] + turn) / step)) - 1
            last = int(np.ceil((right[k] + turn) / step)) + 1
            for begin, end in _column_ranges(first, last, columns, sensor.azimuth_steps):
                window = np.s_[low[k] : high[k], begin:end]
                if (distance[window] <= near[k]).all():
                    continue
                hit, facing = _intersect(rays[window], pose, shape, rng)
                closer = hit < distance[window]
                np.copyto(distance[window], hit, where=closer)
                np.copyto(cosine[window], facing, where=closer)
                np.copyto(nearest[window], k, where=closer)

    seen = distance < sensor.max_range - NOISE_LIMIT * sensor.range_noise
    rays, distance, cosine, nearest = rays[seen], distance[seen], cosine[seen], nearest[seen]
    strength = np.array([shape.material.reflectance for _, _, shape in shapes] + [0], np.float32)[nearest]
    floor = nearest == len(shapes)
    strength[floor] = reflectance(*(rays[floor, :2] * distance[floor, None]).T)
    returned = (1 - sensor.dropout) * (1 - np.exp(-strength * cosine / distance**2 / WEAKEST))
    seen = rng.random(len(distance), np.float32) < returned
    rays, distance, cosine, nearest, strength = rays[seen], distance[seen], cosine[seen], nearest[seen], strength[seen]
    noise = np.clip(rng.standard_normal(len(distance), np.float32), -NOISE_LIMIT, NOISE_LIMIT)
    speckle = np.exp(0.35 * rng.standard_normal(len(distance), np.float32))
    points = np.empty((len(distance), 4), np.float32)
    points[:, :3] = rays * (distance + sensor.range_noise * noise)[:, None]
    points[:, 3] = np.round(np.clip(strength * (0.6 + 0.4 * cosine) * speckle, 0, 0.99), 2)
    return points, np.array([i for i, _, _ in shapes] + [GROUND])[nearest]


def _ground_hits(
    elevations: Array, azimuths: Array, ground: Height, roughness: Height, rng: np.random.Generator
) -> Array:
    """Distance along each ray [E, A] to the ground, inf where there is none.

    Seen from the sensor, the ground along one azimuth rises as tan(elevation) = height / range; a ray ends where that first
    reaches its own. Between samples of the ground it runs straight over 1 / range, as a plane does.
    """
    inverse = np.geomspace(1 / NEAREST, 1 / FARTHEST, GROUND_STEPS, dtype=np.float32)[:, None]
    x, y = np.cos(azimuths) / inverse, np.sin(azimuths) / inverse
    rise = ground(x, y) * inverse
    # one ascending table for a single search: every column's running maximum, raised above the column before
    table = np.clip(np.maximum.accumulate(rise, 0), -1, 1).T + 4 * np.arange(len(azimuths))[:, None]
    aim = np.clip(np.tan(elevations), -1, 1)[:, None] + 4 * np.arange(len(azimuths))
    after = np.searchsorted(table.ravel(), aim).reshape(aim.shape) - GROUND_STEPS * np.arange(len(azimuths))
    hit = (after > 0) & (after < GROUND_STEPS)
    after = np.clip(after, 1, GROUND_STEPS - 1)
    column = np.arange(len(azimuths))
    low, high = rise[after - 1, column], rise[after, column]
    share = np.clip((np.tan(elevations)[:, None] - low) / np.maximum(high - low, 1e-9), 0, 1)
    reach = 1 / (inverse[after - 1, 0] + share * (inverse[after, 0] - inverse[after - 1, 0]))
    bumps = roughness(reach * np.cos(azimuths), reach * np.sin(azimuths)) * rng.standard_normal(reach.shape, np.float32)
    reach -= np.minimum(np.abs(bumps / np.tan(elevations)[:, None]), 0.1 * reach)
    return np.where(hit, reach / np.cos(elevations)[:, None], np.inf).astype(np.float32)


def _windows(
    shapes: Sequence[tuple[Pose, Shape]], elevations: Array
) -> tuple[Array, Array, Array, NDArray[np.int64], NDArray[np.int64]]:
    """Per shape: a lower bound of its distance, its azimuths left..right, its rows low..high. All [S]."""
    poses = np.array([pose for pose, _ in shapes])
    lower = np.array([shape.lower for _, shape in shapes])
    upper = np.array([shape.upper for _, shape in shapes])
    cos, sin = np.cos(poses[:, 3]), np.sin(poses[:, 3])
    # the sensor in the shape's frame
    sx, sy = -poses[:, 0] * cos - poses[:, 1] * sin, poses[:, 0] * sin - poses[:, 1] * cos
    gap_x = np.maximum(np.maximum(lower[:, 0] - sx, sx - upper[:, 0]), 0)
    gap_y = np.maximum(np.maximum(lower[:, 1] - sy, sy - upper[:, 1]), 0)
    near = np.hypot(gap_x, gap_y)
    x = np.stack([lower[:, 0], lower[:, 0], upper[:, 0], upper[:, 0]], 1) - sx[:, None]
    y = np.stack([lower[:, 1], upper[:, 1], lower[:, 1], upper[:, 1]], 1) - sy[:, None]
    far = np.hypot(x, y).max(1)
    middle = np.arctan2(y.mean(1), x.mean(1))
    spread = (np.arctan2(y, x) - middle[:, None] + np.pi) % (2 * np.pi) - np.pi
    inside = near < 1e-6
    first = np.where(inside, -np.pi, spread.min(1)) + middle + poses[:, 3]
    width = np.where(inside, 2 * np.pi, spread.max(1) - spread.min(1))
    left = (first + np.pi) % (2 * np.pi) - np.pi
    top, bottom = poses[:, 2] + upper[:, 2], poses[:, 2] + lower[:, 2]
    close = np.maximum(near, 1e-3)
    low = np.searchsorted(elevations, np.arctan2(bottom, np.where(bottom < 0, close, far)))
    high = np.searchsorted(elevations, np.arctan2(top, np.where(top > 0, close, far)), side="right")
    return near, left, left + width, low, high


def _column_ranges(first: int, last: int, columns: int, steps: int) -> list[tuple[int, int]]:
    """The columns first..last, which may run past a full turn of `steps`, as ranges inside 0..columns."""
    ranges = [(max(first + turn, 0), min(last + turn, columns)) for turn in (-steps, 0, steps)]
    return [(begin, end) for begin, end in ranges if begin < end]


def _intersect(rays: Array, pose: Pose, shape: Shape, rng: np.random.Generator) -> tuple[Array, Array]:
    """Distance of the return (inf: none) and cosine of incidence, per ray."""
    x, y, z, yaw = pose
    cos, sin = np.cos(yaw), np.sin(yaw)
    to_owner = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])  # turns row vectors into the owner's frame
    sensor = -np.array([x, y, z]) @ to_owner
    if shape.faces is None:
        entry, leave, facing = _ellipsoid(rays @ to_owner.astype(np.float32), sensor, shape)
    else:
        entry, leave, facing = _polyhedron(
            rays, to_owner @ shape.faces[:, :3].T, shape.faces[:, 3] - shape.faces[:, :3] @ sensor
        )
    material = shape.material
    if material.surface < 1:
        inside = rng.random(entry.shape, np.float32) >= material.surface
        entry = entry + inside * rng.standard_exponential(entry.shape, np.float32) / np.float32(material.density)
    return np.where(entry < leave, entry, np.inf), facing


def _polyhedron(rays: Array, normals: Array, room: Array) -> tuple[Array, Array, Array]:
    """Where rays enter and leave the half-spaces normals [3, F] · p <= room [F], and the cosine at the entry."""
    slopes = (normals.T.astype(np.float32) @ rays.reshape(-1, 3).T).reshape(-1, *rays.shape[:-1])
    outside = room < 0
    toward, away = slopes[outside], slopes[~outside]
    with np.errstate(divide="ignore", invalid="ignore"):
        enters = np.where(toward < 0, room[outside, None, None].astype(np.float32) / toward, np.inf)
        leaves = np.where(away > 0, room[~outside, None, None].astype(np.float32) / away, np.inf)
    entry = enters.max(0, initial=-np.inf)
    facing = -np.where(enters == entry, toward, 0).min(0, initial=0)
    return np.where(entry > 0, entry, np.inf), leaves.min(0, initial=np.inf), facing


def _ellipsoid(rays: Array, sensor: Array, shape: Shape) -> tuple[Array, Array, Array]:
    """Where rays [..., 3] in the owner's frame enter and leave the ellipsoid, and the cosine at the entry."""
    lower, upper = np.array(shape.lower), np.array(shape.upper)
    radii = (upper - lower) / 2
    start = ((sensor - (lower + upper) / 2) / radii).astype(np.float32)
    scaled = rays / radii.astype(np.float32)
    a = (scaled * scaled).sum(-1)
    b = scaled @ start
    root = b * b - a * (start @ start - 1)
    half = np.sqrt(np.maximum(root, 0))
    entry, leave = (-b - half) / a, (-b + half) / a
    normal = (start + scaled * entry[..., None]) / radii.astype(np.float32)
    facing = -(normal * rays).sum(-1) / np.sqrt((normal * normal).sum(-1))
    return np.where((root > 0) & (entry > 0), entry, np.inf), leave, np.maximum(facing, 0)
