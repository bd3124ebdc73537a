"""Boxes: overlap against hand-computed cases, a raster and what must not change it; suppression; points inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.lidar.boxes import corners_bev, count_inside, inside, iou_3d, iou_bev, nms, wrap

Array = NDArray[Any]


def box(x: float = 0, y: float = 0, z: float = 0, size: tuple[float, ...] = (4, 2, 1.5), yaw: float = 0) -> Array:
    return np.array([[x, y, z, *size, yaw]], np.float64)


position = st.floats(-6, 6)
length = st.floats(0.05, 8)
angle = st.floats(-10, 10)
some_box = st.builds(box, position, position, position, st.tuples(length, length, length), angle)


# ---------------------------------------------------------------- overlap


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        pytest.param(box(), box(x=1), 6 / 10, id="shifted by a quarter"),
        pytest.param(box(), box(size=(2, 1, 1)), 2 / 8, id="one within the other"),
        pytest.param(box(size=(4, 1, 1)), box(size=(4, 1, 1), yaw=np.pi / 2), 1 / 7, id="a cross"),
        pytest.param(
            box(size=(1, 1, 1)), box(size=(1, 1, 1), yaw=np.pi / 4), np.sqrt(1 / 2), id="an octagon, 2 (√2 - 1)"
        ),
        pytest.param(
            box(size=(2, 2, 1)), box(x=2**0.5, size=(2, 2, 1), yaw=np.pi / 4), 1 / 7, id="a diamond's tip, area 1"
        ),
        pytest.param(box(), box(x=4), 0, id="touching"),
        pytest.param(box(), box(x=100), 0, id="far"),
        pytest.param(box(size=(0, 2, 1)), box(size=(0, 2, 1)), 0, id="nothing over nothing"),
        pytest.param(box(), box(yaw=np.pi), 1, id="turned round"),
    ],
)
def test_overlap_worked_out_by_hand(a: Array, b: Array, wanted: float) -> None:
    assert iou_bev(a, b)[0, 0] == pytest.approx(wanted, abs=1e-12)


def test_overlap_in_space_counts_the_shared_height() -> None:
    # 3 × 2 on the ground, a third of the height
    assert iou_3d(box(), box(x=1, z=1))[0, 0] == pytest.approx(3 * 2 * 0.5 / (12 + 12 - 3))
    assert iou_3d(box(), box(z=1.5))[0, 0] == 0


@settings(deadline=None)
@given(some_box, some_box)
def test_overlap_is_symmetric_and_at_most_one(a: Array, b: Array) -> None:
    for iou in (iou_bev, iou_3d):
        assert 0 <= iou(a, b)[0, 0] <= 1 + 1e-9
        assert iou(a, b)[0, 0] == pytest.approx(iou(b, a)[0, 0], abs=1e-9)
    assert iou_3d(a, b)[0, 0] <= iou_bev(a, b)[0, 0] + 1e-9


@settings(deadline=None)
@given(some_box, st.integers(-3, 3))
def test_a_box_is_all_of_itself(a: Array, half_turns: int) -> None:
    same = a + np.array([0, 0, 0, 0, 0, 0, half_turns * np.pi])
    assert iou_bev(a, same)[0, 0] == pytest.approx(1, abs=1e-9)
    assert iou_3d(a, same)[0, 0] == pytest.approx(1, abs=1e-9)


@settings(deadline=None)
@given(some_box, some_box, angle, position, position)
def test_overlap_does_not_depend_on_where_one_stands(a: Array, b: Array, turn: float, dx: float, dy: float) -> None:
    moved = []
    for one in (a, b):
        other = one.copy()
        other[0, 0] = one[0, 0] * np.cos(turn) - one[0, 1] * np.sin(turn) + dx
        other[0, 1] = one[0, 0] * np.sin(turn) + one[0, 1] * np.cos(turn) + dy
        other[0, 6] += turn
        moved.append(other)
    assert iou_3d(*moved)[0, 0] == pytest.approx(iou_3d(a, b)[0, 0], abs=1e-9)


def test_overlap_is_what_a_raster_counts() -> None:
    rng = np.random.default_rng(0)
    a = np.column_stack([rng.uniform(-2, 2, (12, 3)), rng.uniform(0.5, 5, (12, 3)), rng.uniform(-4, 4, 12)])
    axis = np.linspace(-7, 7, 701)
    x, y = np.meshgrid(axis, axis)
    covered = []
    for polygon in corners_bev(a):
        sides = [(p, q - p) for p, q in zip(polygon, np.roll(polygon, -1, axis=0), strict=True)]
        covered.append(np.all([edge[0] * (y - p[1]) >= edge[1] * (x - p[0]) for p, edge in sides], axis=0))
    mask = np.array(covered).reshape(12, -1).astype(np.float64)
    shared = mask @ mask.T
    area = np.diag(shared)
    np.testing.assert_allclose(iou_bev(a, a), shared / (area + area[:, None] - shared), atol=0.02)


def test_many_pairs_are_the_pairs_one_by_one() -> None:
    rng = np.random.default_rng(1)
    a, b = (
        np.column_stack([rng.uniform(-9, 9, (n, 3)), rng.uniform(1, 5, (n, 3)), rng.uniform(-4, 4, n)]) for n in (7, 5)
    )
    wanted = [[iou_3d(p[None], q[None])[0, 0] for q in b] for p in a]
    np.testing.assert_allclose(iou_3d(a, b), wanted, atol=1e-12)
    assert iou_bev(a[:0], b).shape == (0, 5)
    assert iou_bev(a, b[:0]).shape == (7, 0)


def test_boxes_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[M, 7\].*\[3, 8\]"):
        iou_bev(np.zeros((3, 8)), box())


# ---------------------------------------------------------------- suppression


def test_the_best_box_stays_and_what_it_removes_removes_nothing() -> None:
    row = np.concatenate([box(x=x) for x in (0, 1, 2, 50)])  # neighbours overlap by 0.6, the next but one by a third
    np.testing.assert_array_equal(nms(row, np.array([0.9, 0.8, 0.7, 0.1]), 0.5), [0, 2, 3])
    np.testing.assert_array_equal(nms(row, np.array([0.1, 0.8, 0.7, 0.9]), 0.5), [3, 1])
    np.testing.assert_array_equal(nms(row, np.array([0.9, 0.8, 0.7, 0.1]), 0.5, limit=2), [0, 2])


def test_equal_scores_keep_their_order_and_nothing_gives_nothing() -> None:
    np.testing.assert_array_equal(nms(np.repeat(box(), 3, 0), np.full(3, 0.5), 0.5), [0])
    np.testing.assert_array_equal(nms(np.concatenate([box(x=9), box()]), np.full(2, 0.5), 0.5), [0, 1])
    assert nms(np.zeros((0, 7)), np.zeros(0), 0.5).shape == (0,)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 1000))
def test_what_stays_does_not_overlap_and_what_goes_does(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    some = np.column_stack([rng.uniform(-8, 8, (count, 3)), rng.uniform(1, 5, (count, 3)), rng.uniform(-4, 4, count)])
    scores = rng.random(count)
    kept = nms(some, scores, 0.2)
    overlap = iou_bev(some, some)
    for i in range(count):
        better = [k for k in kept if scores[k] > scores[i] and overlap[k, i] > 0.2]
        assert (i in kept) == (not better)


# ---------------------------------------------------------------- points, angles


def test_points_inside_a_turned_box() -> None:
    turned = box(x=10, y=5, z=1, size=(4, 2, 2), yaw=np.pi / 2)  # 9..11 by 3..7 by 0..2
    points = np.array(
        [[10, 5, 1, 0.5], [10, 6.9, 1, 0], [10, 7.1, 1, 0], [11.1, 5, 1, 0], [10, 5, 2.1, 0], [np.nan, 5, 1, 0]],
        np.float32,
    )
    np.testing.assert_array_equal(inside(points, turned), [[True, True, False, False, False, False]])
    np.testing.assert_array_equal(count_inside(points, np.concatenate([turned, box()])), [2, 0])
    assert inside(points[:0], turned).shape == (1, 0)


@settings(deadline=None)
@given(some_box)
def test_corners_lie_on_the_border(a: Array) -> None:
    grown, shrunk = a.copy(), a.copy()
    grown[0, 3:6] += 1e-6
    shrunk[0, 3:6] -= 1e-6
    corners = np.column_stack([corners_bev(a)[0], np.full(4, a[0, 2])])
    assert inside(corners, grown).all()
    assert not inside(corners, shrunk).any()


@settings(deadline=None)
@given(st.floats(-100, 100))
def test_an_angle_wraps_by_whole_turns(value: float) -> None:
    wrapped = float(wrap(np.float64(value)))
    assert -np.pi <= wrapped < np.pi + 1e-9
    assert np.cos(wrapped - value) == pytest.approx(1)
    assert 1 <= float(wrap(np.float64(value), 1, 0.5)) < 1.5 + 1e-9
