"""What stands in a street, as convex shapes: every kind fills the box of its length, width and height."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from edgeq.lidar.raycast import Material, Shape

Point = tuple[float, float, float]
Outline = Sequence[tuple[float, float]]

LABELLED = ("Car", "Van", "Pedestrian", "Cyclist")
OCTAGON = tuple((math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8))
RUBBER, GLASS, CLOTH, SKIN = Material(0.08), Material(0.05, surface=0.2, density=0.25), 0.35, Material(0.4)
LEAVES = Material(0.35, surface=0.0, density=1.2)
BARK, STONE, METAL, PLATE = Material(0.3), Material(0.35), Material(0.4), Material(0.95)


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


def _hull(profile: Outline, widths: Outline, corners: Outline, material: Material) -> Shape:
    """A convex side view `profile` (x, z; counter-clockwise) times a convex front view, half as wide as `widths` (z, half).

    `corners` (angle, cut) round the plan: vertical faces turned by angle from the ends, cut metres off along the sides.
    """
    faces = []
    for (x, z), (next_x, next_z) in pairwise([*profile, profile[0]]):
        edge = math.hypot(next_x - x, next_z - z)
        nx, nz = (next_z - z) / edge, (x - next_x) / edge
        faces.append((nx, 0.0, nz, nx * x + nz * z))
    for (z, half), (next_z, next_half) in pairwise(widths):
        edge = math.hypot(next_half - half, next_z - z)
        ny, nz = (next_z - z) / edge, (half - next_half) / edge
        faces += [(0.0, ny, nz, ny * half + nz * z), (0.0, -ny, nz, ny * half + nz * z)]
    xs, zs = zip(*profile, strict=True)
    x0, x1, widest = min(xs), max(xs), max(half for _, half in widths)
    for angle, off in corners:
        nx, ny = math.cos(angle), math.sin(angle)
        for sign, end in ((nx, x1), (-nx, -x0)):
            faces += [(sign, side, 0.0, nx * (end - off) + ny * widest) for side in (ny, -ny)]
    return Shape((x0, -widest, min(zs)), (x1, widest, max(zs)), np.array(faces), material)


def _wheels(t: Thing, radius: float, track: float) -> list[Shape]:
    """Two axles with their wheels, `track` metres narrower than the box."""
    return [
        _block((x - radius, (track - t.w) / 2, 0), (x + radius, (t.w - track) / 2, 2 * radius), RUBBER)
        for x in (-0.31 * t.l, 0.31 * t.l)
    ]


def _paint(style: float) -> Material:
    return Material(0.008 * 75**style)  # from black to white, most of them dark at 905 nm


def _car(t: Thing) -> tuple[Shape, ...]:
    """Saloon, hatchback or estate: waisted body, glazed cabin, roof, axles; number plates and mirrors reach the box's sides."""
    tail, nose, half = -t.l / 2 + 0.04, t.l / 2 - 0.04, t.w / 2 - 0.05
    belt, pane = (0.62 + 0.05 * t.style[3]) * t.h, t.h - 0.11
    paint = _paint(t.style[0])
    windscreen = nose - (0.2 + 0.05 * t.style[2]) * t.l
    body = _hull(
        [(tail + 0.06, 0.18), (nose - 0.1, 0.18), (nose, 0.24 * t.h), (nose, 0.36 * t.h), (nose - 0.12, 0.5 * t.h),
         (windscreen, belt), (tail + 0.1, belt), (tail, 0.5 * t.h), (tail, 0.3 * t.h)],
        [(0.18, half - 0.08), (0.4 * t.h, half), (belt, half - 0.08)], ((0.92, 0.55), (0.4, 0.25)), paint,
    )  # fmt: skip
    rear = tail + (0.1 if t.style[1] < 0.6 else 0.15 * t.l)  # hatchback and estate, or saloon
    roof = (rear + (0.15 if t.style[1] < 0.3 else 0.45), windscreen - 0.5 - 0.3 * t.style[2])
    cabin = _hull(
        [(rear, belt), (windscreen, belt), (roof[1], pane), (roof[0], pane)],
        [(belt, half - 0.08), (pane, half - 0.24)], ((0.6, 0.2),), GLASS,
    )  # fmt: skip
    lid = _hull(
        [(roof[0] - 0.06, pane), (roof[1] + 0.08, pane), (roof[1] - 0.3, t.h), (roof[0] + 0.25, t.h)],
        [(pane, half - 0.24), (t.h, half - 0.45)], ((0.6, 0.2),), paint,
    )  # fmt: skip
    plates = _block((-t.l / 2, -0.26, 0.26 * t.h), (t.l / 2, 0.26, 0.26 * t.h + 0.12), PLATE)
    mirrors = _block((windscreen - 0.45, -t.w / 2, belt - 0.02), (windscreen - 0.3, t.w / 2, belt + 0.12), paint)
    return (body, cabin, lid, plates, mirrors, *_wheels(t, 0.31, 0.2))


def _van(t: Thing) -> tuple[Shape, ...]:
    """A panel or window van: box body behind a short sloped bonnet; number plates and mirrors reach the box's sides."""
    tail, nose, half = -t.l / 2 + 0.04, t.l / 2 - 0.04, t.w / 2 - 0.06
    belt, pane = 0.52 * t.h, t.h - 0.15
    paint = _paint(t.style[0])
    bonnet = nose - 0.3 - 0.6 * t.style[2]
    body = _hull(
        [(tail, 0.22), (nose - 0.05, 0.22), (nose, 0.3 * t.h), (nose - 0.06, 0.38 * t.h), (bonnet, belt), (tail, belt)],
        [(0.22, half - 0.05), (0.3 * t.h, half), (belt, half - 0.03)], ((0.8, 0.35),), paint,
    )  # fmt: skip
    cabin = _hull(
        [(tail, belt), (bonnet, belt), (bonnet - 0.6, pane), (tail + 0.06, pane)],
        [(belt, half - 0.03), (pane, half - 0.14)], ((0.8, 0.2),), GLASS if t.style[1] < 0.4 else paint,
    )  # fmt: skip
    lid = _hull(
        [(tail + 0.06, pane), (bonnet - 0.55, pane), (bonnet - 0.75, t.h), (tail + 0.15, t.h)],
        [(pane, half - 0.14), (t.h, half - 0.3)], ((0.8, 0.2),), paint,
    )  # fmt: skip
    plates = _block((-t.l / 2, -0.26, 0.2 * t.h), (t.l / 2, 0.26, 0.2 * t.h + 0.12), PLATE)
    mirrors = _block((bonnet - 0.4, -t.w / 2, belt), (bonnet - 0.28, t.w / 2, belt + 0.22), paint)
    return (body, cabin, lid, plates, mirrors, *_wheels(t, 0.34, 0.22))


def _truck(t: Thing) -> tuple[Shape, ...]:
    cab = _block((t.l / 2 - 2.1, -t.w / 2, 0.5), (t.l / 2, t.w / 2, 0.8 * t.h), _paint(t.style[0]))
    load = _block((-t.l / 2, -t.w / 2, 0.9), (t.l / 2 - 2.4, t.w / 2, t.h), _paint(t.style[1]))
    return (cab, load, *_wheels(t, 0.5, 0.1))


def _person(t: Thing) -> tuple[Shape, ...]:
    """Two legs a stride apart with feet at the box's ends, an elliptic trunk, arms at the box's sides, a head."""
    clothes, trousers = Material(CLOTH * (0.3 + 1.2 * t.style[0])), Material(CLOTH * (0.2 + t.style[1]))
    hip, shoulder = 0.5 * t.h, 0.84 * t.h
    swing = 0.15 * (t.style[2] - 0.5)
    stride = t.l / 2 - 0.17
    limbs = [_column(side * stride, side * 0.09, 0.08, 0, hip, trousers) for side in (1, -1)]
    limbs += [
        _block((stride, 0.04, 0), (t.l / 2, 0.14, 0.1), trousers),
        _block((-t.l / 2, -0.14, 0), (-stride, -0.04, 0.1), trousers),
    ]
    limbs += [
        _column(-side * swing, side * (t.w / 2 - 0.05), 0.05, 0.45 * t.h, 0.78 * t.h, clothes) for side in (1, -1)
    ]
    deep, wide = min(0.25 * t.l, 0.17), t.w / 2 - 0.1
    trunk = _ball((-deep, -wide, hip - 0.12), (deep, wide, shoulder + 0.05), clothes)
    return (*limbs, trunk, _ball((-0.11, -0.09, shoulder), (0.11, 0.09, t.h), SKIN))


def _cyclist(t: Thing) -> tuple[Shape, ...]:
    """A rider bent over a bicycle of two thin wheels and a frame."""
    clothes = Material(CLOTH * (0.4 + 1.2 * t.style[0]))
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
    trunk = _ball((-0.3, -0.34 * t.w, 0.48 * t.h), (0.26, 0.34 * t.w, 0.9 * t.h), clothes)
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
