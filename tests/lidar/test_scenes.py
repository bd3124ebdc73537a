"""Synthetic scenes: reproducible, physically consistent, labelled as the objects stand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeq.lidar import raycast
from edgeq.lidar.frame import Frame
from edgeq.lidar.scenes import HDL32, HDL64, HDL64_FRONT, Ground, Road, Sensor, render, scene, street
from edgeq.lidar.shapes import LABELLED, SHAPES, Thing

SEEDS = range(8)
NOISE_FREE = replace(HDL64_FRONT, range_noise=0.0, dropout=0.0)
FLAT = Ground(
    depth=1.73,
    tilt=(0.0, 0.0),
    waves=np.zeros((0, 4)),
    lumps=np.zeros((0, 4)),
    road=Road(0.0, 0.0, 0.0, 200.0, np.inf, 5.0),
    kerb=0.0,
    rough=0.0,
    reflectances=(0.3, 0.3),
)


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return [scene(seed, HDL64_FRONT) for seed in SEEDS]


def test_the_same_seed_gives_the_same_scene_and_another_seed_another():
    once, again, other = scene(3, HDL64_FRONT), scene(3, HDL64_FRONT), scene(4, HDL64_FRONT)
    assert once.points.tobytes() == again.points.tobytes()
    assert once.labels.boxes.tobytes() == again.labels.boxes.tobytes()
    assert once.points.tobytes() != other.points.tobytes()


def test_a_narrower_sensor_sees_the_same_street():
    whole, front = scene(5, HDL64).labels, scene(5, HDL64_FRONT).labels
    all_centres = {tuple(box[:2]) for box in whole.boxes}
    # an object of a single return may be lost to the noise of one of the two
    assert all(tuple(box[:2]) in all_centres for box, n in zip(front.boxes, front.num_points, strict=True) if n > 20)


@pytest.mark.parametrize("sensor", [HDL64, HDL64_FRONT, HDL32])
def test_returns_lie_on_the_beams_within_range_and_sector(sensor: Sensor):
    points = scene(1, sensor).points.astype(np.float64)
    assert points.shape[1] == 4 and len(points) > 10_000
    distance = np.linalg.norm(points[:, :3], axis=1)
    assert distance.max() <= sensor.max_range
    elevation = np.arcsin(points[:, 2] / distance)
    assert np.abs(elevation[:, None] - np.array(sensor.elevations)).min(1).max() < 1e-5
    if sensor.field_of_view is not None:
        assert np.abs(np.arctan2(points[:, 1], points[:, 0])).max() < sensor.field_of_view / 2 + 1e-3
    assert points[:, 3].min() >= 0 and points[:, 3].max() < 1


def _inside(points: np.ndarray, box: np.ndarray, grown: float) -> np.ndarray:
    offset = points[:, :3] - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    local = np.stack(
        [offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin, offset[:, 2]], 1
    )
    return (np.abs(local) <= box[3:6] / 2 + grown).all(1)


def test_boxes_hold_their_points(frames: list[Frame]):
    for frame in frames:
        for box, count in zip(frame.labels.boxes, frame.labels.num_points, strict=True):
            # the ground's own returns may be in the box too
            assert _inside(frame.points, box, 3 * HDL64.range_noise).sum() >= 0.99 * count


@pytest.mark.parametrize("kind", LABELLED)
def test_boxes_are_tight(kind: str):
    """Walked around on clean ground, an object fills its box and no more."""
    size = {"Car": (4.2, 1.7, 1.5), "Van": (5.0, 1.9, 2.2), "Pedestrian": (0.8, 0.6, 1.7), "Cyclist": (1.8, 0.6, 1.7)}[
        kind
    ]
    lowest, highest = np.full(3, np.inf), np.full(3, -np.inf)
    fine = replace(NOISE_FREE, elevations=tuple(np.linspace(-0.55, 0.16, 200)), azimuth_steps=2500, field_of_view=1.4)
    for yaw in np.linspace(-np.pi, np.pi, 8, endpoint=False):
        body = raycast.Body((5.0, 0.0, -1.73, yaw), SHAPES[kind](Thing(kind, 5.0, 0.0, *size, yaw)))
        nowhere = lambda x, y: np.full_like(x, -500)  # noqa: E731
        points, owner = raycast.cast([body], nowhere, nowhere, nowhere, fine, np.random.default_rng(0))
        offset = points[owner == 0, :3] - (5.0, 0.0, -1.73)
        cos, sin = np.cos(yaw), np.sin(yaw)
        local = np.stack(
            [offset[:, 0] * cos + offset[:, 1] * sin, offset[:, 1] * cos - offset[:, 0] * sin, offset[:, 2]], 1
        )
        lowest, highest = np.minimum(lowest, local.min(0)), np.maximum(highest, local.max(0))
    l, w, h = size  # noqa: E741
    np.testing.assert_allclose(lowest, [-l / 2, -w / 2, 0], atol=0.03)
    np.testing.assert_allclose(highest, [l / 2, w / 2, h], atol=0.03)


def test_labelled_boxes_do_not_overlap():
    """Sampled densely, no footprint's inside lies in another's."""
    grid = np.stack(np.meshgrid(np.linspace(-0.5, 0.5, 9), np.linspace(-0.5, 0.5, 9)), -1).reshape(-1, 2)
    for seed in SEEDS:
        boxes = scene(seed, HDL32).labels.boxes
        cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
        along, across = grid[:, 0] * boxes[:, 3:4], grid[:, 1] * boxes[:, 4:5]
        x = boxes[:, :1] + along * cos[:, None] - across * sin[:, None]
        y = boxes[:, 1:2] + along * sin[:, None] + across * cos[:, None]
        samples = np.stack([x, y, np.zeros_like(x)], -1)
        for i, box in enumerate(boxes):
            flat = box.copy()
            flat[2] = 0
            assert not _inside(np.delete(samples, i, 0).reshape(-1, 3), flat, -1e-3).any()


def test_a_car_behind_a_wall_is_neither_hit_nor_labelled():
    car, wall = Thing("Car", 20, 0, 4, 1.6, 1.5, 0.3), Thing("wall", 12, 0, 12, 0.3, 3, np.pi / 2)
    open_street = render("open", [car], FLAT, NOISE_FREE, np.random.default_rng(0))
    assert open_street.labels.classes == ("Car",) and open_street.labels.num_points[0] > 150
    walled = render("walled", [car, wall], FLAT, NOISE_FREE, np.random.default_rng(0))
    assert walled.labels.classes == ()
    ahead = np.abs(np.arctan2(walled.points[:, 1], walled.points[:, 0])) < 0.3
    assert walled.points[ahead, 0].max() < 12.2


def test_of_two_things_on_a_ray_the_nearer_is_hit():
    car, pole = Thing("Car", 10, 0, 4, 1.6, 1.5, np.pi / 2), Thing("pole", 7, 0, 0.3, 0.3, 6, 0.0)
    alone, together = (
        render("pole", things, FLAT, NOISE_FREE, np.random.default_rng(0)).points for things in ([pole], [pole, car])
    )
    on_pole = [
        (points[:, 0] < 7.2) & (np.abs(points[:, 1]) < 0.2) & (points[:, 2] > -1.7) for points in (alone, together)
    ]
    assert on_pole[0].sum() == on_pole[1].sum() > 200


@pytest.mark.parametrize("x", [10.0, -10.0])
def test_a_wall_is_hit_where_it_stands(x: float):
    whole_turn = replace(NOISE_FREE, field_of_view=None)
    wall = Thing("wall", x, 0, 16, 0.5, 8, np.pi / 2)
    points = render("wall", [wall], FLAT, whole_turn, np.random.default_rng(0)).points
    on_wall = points[points[:, 2] > -1.7 + 1e-2 * np.abs(points[:, 0])]
    assert len(on_wall) > 1000
    np.testing.assert_allclose(on_wall[:, 0], x - np.sign(x) * 0.25, atol=1e-3)
    np.testing.assert_allclose([on_wall[:, 1].min(), on_wall[:, 1].max()], [-8, 8], atol=0.1)


def test_the_ground_is_hit_where_it_lies():
    sloped = replace(FLAT, tilt=(0.02, -0.01))
    points = render("ground", [], sloped, NOISE_FREE, np.random.default_rng(0)).points.astype(np.float64)
    assert len(points) > 10_000
    # azimuths of the table lie up to half a step beside the ray's; 4 mm is the road's own roughness
    error = points[:, 2] - (0.02 * points[:, 0] - 0.01 * points[:, 1] - 1.73)
    assert np.abs(error).max() < 0.05 and np.median(np.abs(error)) < 0.01


def test_farther_cars_have_fewer_points():
    counts = []
    for x in (10, 20, 40):
        car = Thing("Car", x, 0, 4, 1.6, 1.5, 0.0)
        counts.append(int(render("car", [car], FLAT, NOISE_FREE, np.random.default_rng(0)).labels.num_points[0]))
    assert counts[0] > 3 * counts[1] > 9 * counts[2] > 0


def test_glass_and_leaves_let_rays_through():
    tree, car = Thing("tree", 8, 0, 4, 4, 6, 0.0), Thing("Car", 8, 0, 4, 1.6, 1.5, np.pi / 2)
    for thing in (tree, car):
        wall = Thing("wall", 14, 0, 30, 0.3, 8, np.pi / 2)
        points = render("seen through", [thing, wall], FLAT, NOISE_FREE, np.random.default_rng(0)).points
        ahead = np.abs(np.arctan2(points[:, 1], points[:, 0])) < 0.05
        above = points[:, 2] / points[:, 0] > -0.06
        assert (points[ahead & above, 0] > 13).sum() > 20


def test_scenes_vary_and_hold_what_a_detector_must_learn():
    layouts = [street(np.random.default_rng(seed))[0] for seed in range(40)]
    vehicles = [sum(t.kind in ("Car", "Van") for t in things) for things in layouts]
    assert np.percentile(vehicles, 5) >= 3 and np.percentile(vehicles, 95) <= 150
    kinds = {thing.kind for things in layouts for thing in things}
    assert kinds == set(SHAPES)
    cars = np.array([(t.l, t.w, t.h) for things in layouts for t in things if t.kind == "Car"])
    np.testing.assert_allclose(cars.mean(0), [3.9, 1.63, 1.53], atol=0.06)  # the means of KITTI's training labels
    yaws = np.array([t.yaw for things in layouts for t in things if t.kind == "Car"])
    assert (np.abs(np.sin(yaws)) > 0.8).mean() > 0.03  # crossing traffic and car parks


def test_the_forward_view_is_as_dense_as_kittis(frames: list[Frame]):
    """KITTI's training frames have 16 700 to 20 500 points in the camera's view (5th to 95th percentile of 29)."""
    counts = []
    for frame in frames:
        x, y, z = frame.points[:, :3].T
        across, down = 609.6 - 721.5 * y / x, 172.9 - 721.5 * z / x  # KITTI's camera 2, its pinhole at the lidar
        counts.append(((across >= 0) & (across < 1242) & (down >= 0) & (down < 375)).sum())
    assert 15_000 < np.median(counts) < 21_000


def test_a_sensor_that_cannot_be_cast_is_refused():
    with pytest.raises(ValueError, match="must rise"):
        replace(HDL64, elevations=HDL64.elevations[::-1])
    with pytest.raises(ValueError, match="max_range"):
        replace(HDL64, max_range=250.0)
