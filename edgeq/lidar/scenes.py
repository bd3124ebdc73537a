"""Synthetic street scenes for a lidar: labelled vehicles, pedestrians and cyclists among houses, trees and poles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.lidar.frame import Frame, labels
from edgeq.lidar.raycast import HDL32, HDL64, HDL64_FRONT, Body, Sensor, cast
from edgeq.lidar.shapes import LABELLED, SHAPES, Point, Thing

__all__ = ["HDL32", "HDL64", "HDL64_FRONT", "Sensor", "scene"]

Array = NDArray[np.floating[Any]]
Footprint = tuple[float, float, float, float, float]  # x, y, l, w, yaw

REACH = 85.0  # metres along the road to either side of the sensor that are furnished


@dataclass(frozen=True, slots=True)
class Road:
    """A road with the centre line v = offset + bend u²/2, where (u, v) is (x, y) turned by -`direction`, and its surroundings.

    A straight road crosses it at u = `crossing` (inf: none). Lengths in metres.
    """

    direction: float
    offset: float
    bend: float
    half_width: float
    crossing: float
    crossing_half_width: float

    def pose(self, u: float, v: float) -> Point:
        """x, y and the road's heading at u along the road and v to the left of its centre line."""
        heading = math.atan(self.bend * u)
        across = self.offset + self.bend * u * u / 2 + v * math.cos(heading)
        along = u - v * math.sin(heading)
        cos, sin = math.cos(self.direction), math.sin(self.direction)
        return along * cos - across * sin, along * sin + across * cos, heading + self.direction

    def outside(self, x: Array, y: Array) -> NDArray[np.bool_]:
        """Whether the points lie beside the roads."""
        cos, sin = math.cos(self.direction), math.sin(self.direction)
        u, v = x * cos + y * sin, y * cos - x * sin
        beside: NDArray[np.bool_] = np.abs(v - self.offset - self.bend * u * u / 2) > self.half_width
        return beside & (np.abs(u - self.crossing) > self.crossing_half_width)


@dataclass(frozen=True, slots=True)
class Ground:
    """A tilted plane `depth` below the sensor with long waves; beside the road a kerb, then lumps.

    Waves and lumps are [K, 4]: wave vector (rad/m), phase, amplitude (m).
    """

    depth: float
    tilt: tuple[float, float]
    waves: Array
    lumps: Array
    road: Road
    kerb: float
    rough: float
    reflectances: tuple[float, float]

    def height(self, x: Array, y: Array) -> Array:
        """Height of the surface."""
        plane = self.tilt[0] * x + self.tilt[1] * y - self.depth
        beside = self.road.outside(x, y) * (_ripple(self.lumps, x, y) + np.float32(self.kerb))
        return plane + _ripple(self.waves, x, y) + beside

    def roughness(self, x: Array, y: Array) -> Array:
        """Standard deviation of the surface's height, metres."""
        return np.where(self.road.outside(x, y), np.float32(self.rough), np.float32(0.004))

    def reflectance(self, x: Array, y: Array) -> Array:
        """Reflectance of the surface, 0..1."""
        return np.where(self.road.outside(x, y), self.reflectances[1], self.reflectances[0])


def _ripple(waves: Array, x: Array, y: Array) -> Array:
    height = np.zeros_like(x)
    for kx, ky, phase, amplitude in waves.tolist():
        height += amplitude * (np.sin(kx * x + ky * y + phase) - math.sin(phase))
    return height


def scene(seed: int, sensor: Sensor = HDL64) -> Frame:
    """One random scene; the same seed gives the same street whatever the sensor.

    Labels are the vehicles, pedestrians and cyclists with at least one return: `boxes` float64 [M, 7], tight around the shape,
    and `num_points`, the object's own returns. Occlusion and truncation stay 0.
    """
    layout, noise = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    things, ground = street(layout)
    return render(f"scene-{seed}", things, ground, sensor, noise)


def render(name: str, things: Sequence[Thing], ground: Ground, sensor: Sensor, rng: np.random.Generator) -> Frame:
    """Scan `things`, which must not overlap, on `ground`."""
    ground = replace(ground, depth=sensor.height)
    things = [thing for thing in things if _in_reach(thing, sensor)]
    base = ground.height(np.array([t.x for t in things]), np.array([t.y for t in things]))
    bodies = [Body((t.x, t.y, float(z), t.yaw), SHAPES[t.kind](t)) for t, z in zip(things, base, strict=True)]
    points, owner = cast(bodies, ground.height, ground.roughness, ground.reflectance, sensor, rng)
    returns = np.bincount(owner[owner >= 0], minlength=len(things))
    seen = [i for i, thing in enumerate(things) if thing.kind in LABELLED and returns[i] > 0]
    boxes = [(t.x, t.y, base[i] + t.h / 2, t.l, t.w, t.h, _wrap(t.yaw)) for i, t in ((i, things[i]) for i in seen)]
    found = labels(
        np.array(boxes, dtype=np.float64).reshape(-1, 7),
        tuple(things[i].kind for i in seen),
        returns[seen].astype(np.int64),
    )
    return Frame(name=name, points=points, labels=found)


def _wrap(angle: float) -> float:
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _in_reach(thing: Thing, sensor: Sensor) -> bool:
    radius, distance = np.hypot(thing.l, thing.w) / 2, np.hypot(thing.x, thing.y)
    if distance <= radius:
        return True
    turn = np.pi if sensor.field_of_view is None else sensor.field_of_view / 2
    margin = np.arcsin(radius / distance)
    return bool(distance - radius < sensor.max_range and abs(np.arctan2(thing.y, thing.x)) - margin < turn)


class _Plot:
    """The things placed so far; `add` refuses one whose footprint, grown by a margin, meets another's."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.things: list[Thing] = []
        self._footprints: list[Footprint] = []
        self._circles = np.zeros((256, 3))
        self._reserve((0, 0, 5.5, 2.6, 0))  # the sensor's own car

    def _reserve(self, footprint: Footprint) -> bool:
        x, y, l, w, _ = footprint  # noqa: E741
        radius = math.hypot(l, w) / 2
        taken = self._circles[: len(self._footprints)]
        close = (taken[:, 0] - x) ** 2 + (taken[:, 1] - y) ** 2 < (taken[:, 2] + radius) ** 2
        if any(_overlap(footprint, self._footprints[i]) for i in np.flatnonzero(close)):
            return False
        if len(taken) == len(self._circles):
            self._circles = np.concatenate([self._circles, np.zeros_like(self._circles)])
        self._circles[len(taken)] = x, y, radius
        self._footprints.append(footprint)
        return True

    def add(
        self, kind: str, x: float, y: float, size: tuple[float, float, float], yaw: float, margin: float = 0.15
    ) -> bool:
        style = tuple(self.rng.random(4).tolist())
        l, w, h = size  # noqa: E741
        # a crown hangs over what stands below: only the trunk takes room
        room = (0.8, 0.8) if kind == "tree" else (l + 2 * margin, w + 2 * margin)
        if not self._reserve((x, y, *room, yaw)):
            return False
        self.things.append(Thing(kind, x, y, l, w, h, yaw, style))
        return True


def _overlap(a: Footprint, b: Footprint) -> bool:
    """Whether two rectangles meet: no separating axis among their sides."""
    for one, other in ((a, b), (b, a)):
        cos, sin = math.cos(one[4]), math.sin(one[4])
        turn = other[4] - one[4]
        c, s = abs(math.cos(turn)) / 2, abs(math.sin(turn)) / 2
        dx, dy = other[0] - one[0], other[1] - one[1]
        if abs(dx * cos + dy * sin) > one[2] / 2 + other[2] * c + other[3] * s:
            return False
        if abs(dy * cos - dx * sin) > one[3] / 2 + other[2] * s + other[3] * c:
            return False
    return True


def _size(rng: np.random.Generator, kind: str) -> Point:
    """Length, width, height; the means are those of KITTI's training labels."""
    l, w, h = (  # noqa: E741
        min(max(mean + sigma * normal, low), high)
        for low, mean, sigma, high, normal in zip(*SIZES[kind], rng.standard_normal(3).tolist(), strict=True)
    )
    return l, w, h


def _pick(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """A key at random; the weights add up to 1."""
    mark = rng.random()
    for name, weight in weights.items():
        mark -= weight
        if mark < 0:
            return name
    return name


# kind: lowest, mean, standard deviation, highest of l, w, h
SIZES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "Car": ((3.2, 1.5, 1.35), (3.9, 1.63, 1.53), (0.42, 0.1, 0.11), (5.0, 1.9, 1.75)),
    "Van": ((4.5, 1.8, 1.9), (5.1, 1.91, 2.2), (0.4, 0.09, 0.2), (6.0, 2.1, 2.6)),
    "Pedestrian": ((0.5, 0.45, 1.5), (0.8, 0.62, 1.74), (0.18, 0.1, 0.1), (1.1, 0.85, 1.95)),
    "Cyclist": ((1.5, 0.45, 1.55), (1.76, 0.6, 1.73), (0.12, 0.07, 0.09), (2.0, 0.8, 1.95)),
    "truck": ((6.5, 2.3, 2.9), (9.0, 2.5, 3.4), (1.5, 0.1, 0.3), (14.0, 2.6, 4.0)),
}


def _vehicle(rng: np.random.Generator) -> str:
    return _pick(rng, {"Car": 0.85, "Van": 0.12, "truck": 0.03})


def street(rng: np.random.Generator) -> tuple[list[Thing], Ground]:
    """A street, an open road or a car park, furnished at random; the ground's depth is the sensor's to set."""
    urban = rng.random() < 0.75
    lanes = int(rng.integers(1, 3)) if urban else int(rng.integers(1, 4))
    lane = rng.uniform(2.9, 3.6)
    parking = 2.2 if urban and rng.random() < 0.75 else 0.4
    half = lanes * lane + parking
    crossing = rng.uniform(8, 50) if rng.random() < (0.4 if urban else 0.1) else np.inf
    direction = rng.normal(0, 0.03) if rng.random() < 0.8 else rng.uniform(-0.6, 0.6)
    mine = rng.integers(0, lanes) + 0.5
    road = Road(direction, mine * lane, rng.normal(0, 0.0015), half, crossing, rng.uniform(3.5, 7))
    waves = np.column_stack([rng.normal(0, 0.08, (3, 2)), rng.uniform(0, 2 * np.pi, 3), rng.uniform(0, 0.08, 3)])
    wild = rng.uniform(0, 0.05) if urban else rng.uniform(0.02, 0.12)
    lumps = np.column_stack([rng.normal(0, 0.7, (3, 2)), rng.uniform(0, 2 * np.pi, 3), rng.uniform(0, wild, 3)])
    kerb = rng.uniform(0.06, 0.16) if urban else 0.0
    tilt = (float(rng.normal(0, 0.012)), float(rng.normal(0, 0.012)))
    shades = (rng.uniform(0.2, 0.4), rng.uniform(0.25, 0.5))
    ground = Ground(1.0, tilt, waves, lumps, road, kerb, wild / 2, shades)

    plot = _Plot(rng)
    _traffic(plot, road, lanes, lane)
    if parking > 1:
        for side in (1, -1):
            _parked_row(plot, road, side * (half - 1.1))
    if rng.random() < 0.3:
        _car_park(plot, road, int(rng.choice([1, -1])))
    _people(plot, road, urban)
    _roadside(plot, road, urban)
    return plot.things, ground


def _near_crossing(road: Road, u: float, room: float) -> bool:
    return abs(u - road.crossing) < road.crossing_half_width + room


def _traffic(plot: _Plot, road: Road, lanes: int, lane: float) -> None:
    """Vehicles in the lanes, at one density a scene; some turn, and some drive on the crossing road."""
    rng = plot.rng
    gap = rng.choice([6.0, 15.0, 40.0], p=[0.25, 0.45, 0.3])
    for k in range(-lanes, lanes):
        u = -REACH + rng.exponential(gap)
        while u < REACH:
            kind = _vehicle(rng)
            size = _size(rng, kind)
            x, y, heading = road.pose(u, (k + 0.5) * lane + rng.normal(0, 0.2))
            turn = rng.uniform(-1.2, 1.2) if _near_crossing(road, u, 6) and rng.random() < 0.4 else rng.normal(0, 0.03)
            plot.add(kind, x, y, size, heading + turn + (np.pi if k >= 0 else 0), margin=0.4)
            u += size[0] + 1.5 + rng.exponential(gap)
    if np.isfinite(road.crossing):
        for side in (1, -1):
            v = -50 + rng.exponential(gap)
            while v < 50:
                kind = _vehicle(rng)
                size = _size(rng, kind)
                x, y, _ = road.pose(road.crossing + side * road.crossing_half_width / 2, v)
                plot.add(kind, x, y, size, road.direction + side * np.pi / 2 + rng.normal(0, 0.04), margin=0.4)
                v += size[0] + 1.5 + rng.exponential(gap)


def _parked_row(plot: _Plot, road: Road, v: float) -> None:
    rng = plot.rng
    full = rng.uniform(0.15, 0.95)
    u = -REACH
    while u < REACH:
        kind = _pick(rng, {"Car": 0.88, "Van": 0.12})
        size = _size(rng, kind)
        u += size[0] / 2
        if rng.random() < full and not _near_crossing(road, u, 4):
            x, y, heading = road.pose(u, v + rng.normal(0, 0.1))
            plot.add(kind, x, y, size, heading + rng.normal(0, 0.03) + np.pi * int(rng.random() < 0.4), margin=0.1)
        u += size[0] / 2 + rng.uniform(0.5, 1.6)


def _car_park(plot: _Plot, road: Road, side: int) -> None:
    """Rows of bays beside the road, at any angle to it."""
    rng = plot.rng
    yaw = road.direction + rng.choice([np.pi / 2, rng.uniform(-np.pi, np.pi)])
    u0, v0, rows, bays = (
        rng.uniform(0, 40),
        side * (road.half_width + rng.uniform(10, 22)),
        int(rng.integers(1, 5)),
        int(rng.integers(5, 14)),
    )
    full = rng.uniform(0.3, 0.95)
    x0, y0, _ = road.pose(u0, v0)
    cos, sin = np.cos(yaw), np.sin(yaw)
    for row in range(rows):
        for bay in range(bays):
            if rng.random() > full:
                continue
            along = (row - (rows - 1) / 2) * 5.4 + (row // 2) * 6.0 + rng.normal(0, 0.2)
            across = (bay - (bays - 1) / 2) * 2.5 + rng.normal(0, 0.08)
            x, y = x0 + along * cos - across * sin, y0 + along * sin + across * cos
            if not bool(road.outside(np.array([x - 2.5, x + 2.5, x]), np.array([y, y, y + 2.5])).all()):
                continue
            kind = _pick(rng, {"Car": 0.9, "Van": 0.1})
            plot.add(
                kind, x, y, _size(rng, kind), yaw + rng.normal(0, 0.04) + np.pi * int(rng.random() < 0.5), margin=0.1
            )


def _people(plot: _Plot, road: Road, urban: bool) -> None:
    """Pedestrians, alone and in groups, on the pavements and crossing; cyclists along the kerb and on the pavements."""
    rng = plot.rng
    for _ in range(rng.poisson(9 if urban else 1)):
        u, v = rng.uniform(-60, 60), rng.choice([1, -1]) * (road.half_width + rng.uniform(0.3, 4))
        if rng.random() < 0.15:
            v = rng.uniform(-road.half_width, road.half_width)
        for _ in range(int(rng.choice([1, 1, 2, 3]))):
            x, y, heading = road.pose(u + rng.normal(0, 0.6), v + rng.normal(0, 0.6))
            turn = rng.choice([0, np.pi]) + rng.normal(0, 0.2) if rng.random() < 0.6 else rng.uniform(-np.pi, np.pi)
            plot.add("Pedestrian", x, y, _size(rng, "Pedestrian"), heading + turn, margin=0.05)
    for _ in range(rng.poisson(4 if urban else 1)):
        side = rng.choice([1, -1])
        x, y, heading = road.pose(rng.uniform(-60, 60), side * (road.half_width + rng.uniform(-3, 2.5)))
        turn = (0 if side < 0 else np.pi) + rng.normal(0, 0.1) if rng.random() < 0.75 else rng.uniform(-np.pi, np.pi)
        plot.add("Cyclist", x, y, _size(rng, "Cyclist"), heading + turn)


def _roadside(plot: _Plot, road: Road, urban: bool) -> None:
    """Poles, bins and trees at the kerb; houses, walls, fences, hedges or open ground with bushes behind the pavement."""
    rng = plot.rng
    for side in (1, -1):
        kerbside = float(rng.uniform(0.02, 0.1))  # things a metre
        for _ in range(rng.poisson(kerbside * 2 * REACH)):
            u, v = rng.uniform(-REACH, REACH), side * (road.half_width + rng.uniform(0.6, 1.6))
            if not _near_crossing(road, u, 1):
                kind = _pick(rng, {"pole": 0.45, "tree": 0.3, "bin": 0.15, "bush": 0.1})
                _furniture(plot, kind, *road.pose(u, v))
        pavement = road.half_width + rng.uniform(2.5, 7)
        built = rng.random() < (0.8 if urban else 0.15)
        u = -REACH
        while u < REACH:
            length = rng.uniform(6, 25)
            u += length / 2
            setback = rng.uniform(0, 4)
            if not _near_crossing(road, u, length / 2 + 1):
                if built and rng.random() < 0.8:
                    depth = rng.uniform(7, 14)
                    x, y, heading = road.pose(u, side * (pavement + setback + depth / 2))
                    plot.add("building", x, y, (length, depth, rng.uniform(3, 14)), heading)
                else:
                    for _ in range(rng.poisson(length * 0.15)):
                        v = side * (pavement + rng.exponential(10))
                        _furniture(
                            plot,
                            _pick(rng, {"tree": 0.5, "bush": 0.5}),
                            *road.pose(u + rng.uniform(-0.5, 0.5) * length, v),
                        )
                if rng.random() < 0.35:
                    kind = _pick(rng, {"wall": 1 / 3, "fence": 1 / 3, "hedge": 1 / 3})
                    x, y, heading = road.pose(u, side * (pavement - 0.4))
                    plot.add(
                        kind,
                        x,
                        y,
                        (length, 0.7 if kind == "hedge" else 0.15, rng.uniform(0.6, 2)),
                        heading,
                        margin=0.05,
                    )
            u += length / 2 + rng.choice([0.2, 3.0, 8.0])


def _furniture(plot: _Plot, kind: str, x: float, y: float, heading: float) -> None:
    rng = plot.rng
    if kind == "pole":
        width = rng.uniform(0.08, 0.25)
        size = (width, width, rng.uniform(2.2, 8))
    elif kind == "tree":
        width = rng.uniform(2, 6)
        size = (width, width, rng.uniform(4, 10))
    elif kind == "bush":
        size = (rng.uniform(0.6, 2.5), rng.uniform(0.6, 1.8), rng.uniform(0.5, 2))
    else:
        size = (rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8), rng.uniform(0.7, 1.3))
    plot.add(kind, x, y, size, heading)
