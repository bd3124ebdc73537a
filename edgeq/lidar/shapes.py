"""What stands in a street, as convex shapes: every kind fills the box of its length, width and height."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from edgeq.lidar.raycast import Material, Shape

Point = tuple[float, float, float]

LABELLED = ("Car", "Van", "Pedestrian", "Cyclist")
OCTAGON = tuple((math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8))
RUBBER, GLASS, CLOTH, SKIN = Material(0.08), Material(0.1, surface=0.2, density=0.25), 0.35, Material(0.4)
LEAVES = Material(0.35, surface=0.0, density=1.2)
BARK, STONE, METAL = Material(0.3), Material(0.35), Material(0.4)


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that stands on the ground: footprint x, y (centre), l, w, h, yaw; `style` [4] in 0..1 picks its looks."""

    kind: str
    x: float
    y: float
    l: float  # noqa: E741 - the field's own name
    w: float
    h: float
    yaw: float
    style: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 0.5)


def _block(lower: Point, upper: Point, material: Material) -> Shape:
    (x0, y0, z0), (x1, y1, z1) = lower, upper
    faces = [(1, 0, 0, x1), (-1, 0, 0, -x0), (0, 1, 0, y1), (0, -1, 0, -y0), (0, 0, 1, z1), (0, 0, -1, -z0)]
    return Shape(lower, upper, np.array(faces, np.float64), material)


def _ball(lower: Point, upper: Point, material: Material) -> Shape:
    return Shape(lower, upper, None, material)


def _column(x: float, y: float, radius: float, low: float, high: float, material: Material) -> Shape:
    """An upright prism of eight sides, `radius` to each."""
    faces = [(cos, sin, 0.0, radius + cos * x + sin * y) for cos, sin in OCTAGON]
    faces += [(0, 0, 1, high), (0, 0, -1, -low)]
    return Shape((x - radius, y - radius, low), (x + radius, y + radius, high), np.array(faces), material)


def _hull(
    profile: Sequence[tuple[float, float]], half: float, top_half: float, corner: float, material: Material
) -> Shape:
    """A convex side view `profile` (x, z; counter-clockwise), `half` wide at its foot, `top_half` above; corners cut."""
    faces = []
    for (x, z), (next_x, next_z) in pairwise([*profile, profile[0]]):
        edge = math.hypot(next_x - x, next_z - z)
        nx, nz = (next_z - z) / edge, (x - next_x) / edge
        faces.append((nx, 0.0, nz, nx * x + nz * z))
    xs, zs = zip(*profile, strict=True)
    x0, x1, low, high = min(xs), max(xs), min(zs), max(zs)
    lean = math.hypot(half - top_half, high - low)
    up, out = (half - top_half) / lean, (high - low) / lean
    faces += [(0.0, side * out, up, out * half + up * low) for side in (1, -1)]
    if corner:
        ends = ((0.6, x1), (-0.6, -x0))
        faces += [(nx, ny, 0.0, 0.6 * (end - corner) + 0.8 * half) for nx, end in ends for ny in (0.8, -0.8)]
    return Shape((x0, -half, low), (x1, half, high), np.array(faces), material)


def _wheels(t: Thing, radius: float) -> list[Shape]:
    return [
        _block((x - radius, -t.w / 2 + 0.04, 0), (x + radius, t.w / 2 - 0.04, 2 * radius), RUBBER)
        for x in (-0.31 * t.l, 0.31 * t.l)
    ]


def _paint(style: float) -> Material:
    return Material(0.02 + 0.1 * style if style < 0.3 else 0.7 * style)


def _car(t: Thing) -> tuple[Shape, ...]:
    """Saloon, hatchback or estate: body with bonnet, glazed cabin under a roof, two axles."""
    tail, nose = -t.l / 2, t.l / 2
    belt = 0.58 * t.h
    paint = _paint(t.style[0])
    body = _hull(
        [(tail + 0.08, 0.22), (nose - 0.08, 0.22), (nose, 0.4 * belt), (nose - 0.06, 0.72 * belt), (nose - 0.28 * t.l, belt),
         (tail + 0.1, belt), (tail, 0.6 * belt)],
        t.w / 2, t.w / 2 - 0.06, 0.35, paint,
    )  # fmt: skip
    rear = tail + (0.12 if t.style[1] < 0.6 else 0.16 * t.l)  # hatchback and estate, or saloon
    rear_slope = 0.12 if t.style[1] < 0.3 else 0.4
    front = nose - 0.27 * t.l
    roof = (rear + rear_slope, front - 0.5 - 0.25 * t.style[2])
    pane = t.h - 0.12
    cabin = _hull(
        [(rear, belt), (front, belt), (roof[1], pane), (roof[0], pane)], t.w / 2 - 0.08, t.w / 2 - 0.2, 0, GLASS
    )
    lid = _hull(
        [(roof[0] - 0.06, pane), (roof[1] + 0.08, pane), (roof[1] - 0.12, t.h), (roof[0] + 0.1, t.h)],
        t.w / 2 - 0.2, t.w / 2 - 0.28, 0, paint,
    )  # fmt: skip
    return (body, cabin, lid, *_wheels(t, 0.31))


def _van(t: Thing) -> tuple[Shape, ...]:
    """A panel or window van: box body behind a short sloped bonnet."""
    tail, nose = -t.l / 2, t.l / 2
    belt = 0.5 * t.h
    paint = _paint(t.style[0])
    body = _hull(
        [(tail, 0.25), (nose, 0.25), (nose, 0.32 * t.h), (nose - 0.75, belt), (tail, belt)],
        t.w / 2,
        t.w / 2,
        0.25,
        paint,
    )
    glazed = t.style[1] < 0.4
    upper = [(tail, belt), (nose - 0.75, belt), (nose - 1.35, t.h - 0.15), (tail + 0.06, t.h - 0.15)]
    cabin = _hull(upper, t.w / 2, t.w / 2 - 0.12, 0, GLASS if glazed else paint)
    lid = _block((tail + 0.06, -t.w / 2 + 0.13, t.h - 0.15), (nose - 1.3, t.w / 2 - 0.13, t.h), paint)
    return (body, cabin, lid, *_wheels(t, 0.34))


def _truck(t: Thing) -> tuple[Shape, ...]:
    cab = _block((t.l / 2 - 2.1, -t.w / 2, 0.5), (t.l / 2, t.w / 2, 0.8 * t.h), _paint(t.style[0]))
    load = _block((-t.l / 2, -t.w / 2, 0.9), (t.l / 2 - 2.4, t.w / 2, t.h), _paint(t.style[1]))
    return (cab, load, *_wheels(t, 0.5))


def _person(t: Thing) -> tuple[Shape, ...]:
    """Two legs a stride apart, an elliptic trunk with the arms in its width, a head."""
    clothes, trousers = Material(CLOTH * (0.4 + t.style[0])), Material(CLOTH * (0.3 + t.style[1]))
    hip, shoulder = 0.5 * t.h, 0.84 * t.h
    legs = [_column(sign * (t.l / 2 - 0.09), sign * 0.09, 0.09, 0, hip, trousers) for sign in (1, -1)]
    deep = min(0.3 * t.l, 0.2)
    trunk = _ball((-deep, -t.w / 2, hip - 0.12), (deep, t.w / 2, shoulder + 0.05), clothes)
    return (*legs, trunk, _ball((-0.11, -0.1, shoulder), (0.11, 0.1, t.h), SKIN))


def _cyclist(t: Thing) -> tuple[Shape, ...]:
    """A rider bent over a bicycle of two thin wheels and a frame."""
    clothes = Material(CLOTH * (0.4 + t.style[0]))
    radius = 0.34
    wheels = [
        _block((x - radius, -0.03, 0), (x + radius, 0.03, 2 * radius), Material(0.15, surface=0.35, density=2.0))
        for x in (-t.l / 2 + radius, t.l / 2 - radius)
    ]
    frame = _block(
        (-t.l / 2 + radius, -0.03, 0.35), (t.l / 2 - radius, 0.03, 0.9), Material(0.3, surface=0.4, density=2.0)
    )
    bar = _block((0.25 * t.l, -t.w / 2, 0.57 * t.h), (0.25 * t.l + 0.06, t.w / 2, 0.57 * t.h + 0.06), METAL)
    legs = _ball((-0.22, -0.19, 0.3), (0.26, 0.19, 1.0), clothes)
    trunk = _ball((-0.32, -0.4 * t.w, 0.48 * t.h), (0.28, 0.4 * t.w, 0.9 * t.h), clothes)
    return (*wheels, frame, bar, legs, trunk, _ball((0.08, -0.1, t.h - 0.27), (0.32, 0.1, t.h), SKIN))


def _building(t: Thing) -> tuple[Shape, ...]:
    stone = Material(0.2 + 0.4 * t.style[0], surface=0.9, density=0.3)
    return (_block((-t.l / 2, -t.w / 2, -1), (t.l / 2, t.w / 2, t.h), stone),)


def _fence(t: Thing) -> tuple[Shape, ...]:
    gaps = Material(0.35, surface=0.3 + 0.6 * t.style[0], density=0.1)
    return (_block((-t.l / 2, -t.w / 2, 0), (t.l / 2, t.w / 2, t.h), gaps),)


def _wall(t: Thing) -> tuple[Shape, ...]:
    return (_block((-t.l / 2, -t.w / 2, -0.5), (t.l / 2, t.w / 2, t.h), STONE),)


def _pole(t: Thing) -> tuple[Shape, ...]:
    pole = _column(0, 0, t.w / 2, 0, t.h, METAL)
    if t.style[0] < 0.4:  # a traffic sign
        return (pole, _block((-0.02, -0.32, t.h - 0.7), (0.02, 0.32, t.h), Material(0.9)))
    return (pole,)


def _tree(t: Thing) -> tuple[Shape, ...]:
    """A trunk under a crown as wide as the box."""
    radius, low = 0.1 + 0.2 * t.style[0], t.h * (0.2 + 0.2 * t.style[1])
    trunk = _column(0, 0, radius, -0.3, low + 0.2 * t.h, BARK)
    return (trunk, _ball((-t.l / 2, -t.w / 2, low), (t.l / 2, t.w / 2, t.h), LEAVES))


def _bush(t: Thing) -> tuple[Shape, ...]:
    dense = replace(LEAVES, density=4.0)
    return (_ball((-t.l / 2, -t.w / 2, -0.3 * t.h), (t.l / 2, t.w / 2, t.h), dense),)


def _hedge(t: Thing) -> tuple[Shape, ...]:
    return (_block((-t.l / 2, -t.w / 2, -0.3), (t.l / 2, t.w / 2, t.h), replace(LEAVES, density=5.0)),)


def _bin(t: Thing) -> tuple[Shape, ...]:
    return (_block((-t.l / 2, -t.w / 2, 0), (t.l / 2, t.w / 2, t.h), Material(0.2 + 0.3 * t.style[0])),)


SHAPES: dict[str, Callable[[Thing], tuple[Shape, ...]]] = {
    "Car": _car,
    "Van": _van,
    "Pedestrian": _person,
    "Cyclist": _cyclist,
    "truck": _truck,
    "building": _building,
    "wall": _wall,
    "fence": _fence,
    "hedge": _hedge,
    "pole": _pole,
    "tree": _tree,
    "bush": _bush,
    "bin": _bin,
}
