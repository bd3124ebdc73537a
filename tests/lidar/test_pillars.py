"""Pillars: against a loop over points, at the edges of the range and of the room there is, and against PointPillars' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.lidar.pillars import decorate, grid, pillarise

RANGE, SIZE = (0.0, -2.0, -3.0, 4.0, 2.0, 1.0), (0.5, 0.5)  # 8 × 8 cells


def cloud(count: int, seed: int) -> NDArray[np.float32]:
    """Points of which some lie outside the range."""
    rng = np.random.default_rng(seed)
    low, high = np.array([-0.5, -2.5, -3.5, 0]), np.array([4.5, 2.5, 1.5, 1])
    return (low + rng.random((count, 4)) * (high - low)).astype(np.float32)


def by_loop(points: NDArray[Any], max_points: int) -> dict[int, list[NDArray[Any]]]:
    """Cell → its first points."""
    found: dict[int, list[NDArray[Any]]] = {}
    for p in points:
        if all(RANGE[i] <= p[i] < RANGE[i + 3] for i in range(3)):
            cell = int((p[1] - RANGE[1]) / SIZE[1]) * 8 + int((p[0] - RANGE[0]) / SIZE[0])
            found.setdefault(cell, [])
            if len(found[cell]) < max_points:
                found[cell].append(p)
    return found


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 1000), st.integers(1, 6))
def test_pillars_are_what_a_loop_over_the_points_finds(count: int, seed: int, max_points: int) -> None:
    points = cloud(count, seed)
    wanted = by_loop(points, max_points)
    found = pillarise(points, RANGE, SIZE, max_points, 64)
    assert found.dropped == 0
    assert found.cells[: len(wanted)].tolist() == sorted(wanted)
    assert (found.cells[len(wanted) :] == 64).all()
    assert not found.num_points[len(wanted) :].any()
    for pillar, cell in enumerate(sorted(wanted)):
        inside = found.num_points[pillar]
        np.testing.assert_array_equal(found.points[pillar, :inside], wanted[cell])
        assert not found.points[pillar, inside:].any()


def test_pillars_without_room_are_counted_and_are_those_of_fewest_points() -> None:
    counts = {0: 3, 1: 1, 2: 2, 3: 1, 4: 5}
    points = np.array([[0.25 + 0.5 * c, -1.75, 0, 0.5] for c, n in counts.items() for _ in range(n)], np.float32)
    found = pillarise(points, RANGE, SIZE, 4, 3)
    assert found.dropped == 2
    assert found.cells.tolist() == [0, 2, 4]
    assert found.num_points.tolist() == [3, 2, 4]
    assert pillarise(points, RANGE, SIZE, 4, 4).cells.tolist() == [0, 1, 2, 4], "of two alike one stays"


@pytest.mark.parametrize("points", [np.zeros((0, 4)), np.full((5, 4), 1e6), np.full((5, 4), np.nan)])
def test_a_cloud_without_a_point_in_range_gives_no_pillars(points: NDArray[Any]) -> None:
    found = pillarise(points, RANGE, SIZE, 4, 6)
    assert (found.cells == 64).all()
    assert not decorate(found, RANGE, SIZE, bias=[1.0] * 10).any()


def test_a_point_that_is_not_finite_is_no_point() -> None:
    points = np.array([[1, 1, 0, 0.5], [1, 1, 0, np.nan], [np.inf, 1, 0, 0], [1, -np.inf, 0, 0]], np.float32)
    assert pillarise(points, RANGE, SIZE, 4, 6).num_points.tolist() == [1, 0, 0, 0, 0, 0]


def test_the_lower_bound_is_in_the_range_and_the_upper_is_not() -> None:
    points = np.array(
        [[0, -2, -3, 0], [4, -2, -3, 0], [np.nextafter(np.float32(4), np.float32(0)), -2, -3, 0]], np.float32
    )
    assert pillarise(points, RANGE, SIZE, 4, 3).cells.tolist() == [0, 7, 64]


def test_wrong_shapes_and_ranges_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[N, 4\].*\[9, 3\]"):
        pillarise(np.zeros((9, 3)), RANGE, SIZE, 4, 6)
    with pytest.raises(ValueError, match="not a whole number of pillars"):
        grid(RANGE, (0.3, 0.5))
    assert grid((0, -39.68, -3, 69.12, 39.68, 1), (0.16, 0.16)) == (496, 432)


def test_features_worked_out_by_hand() -> None:
    points = np.array([[1.0, 0.25, 0.5, 0.1], [1.5, 0.25, -0.5, 0.3]], np.float32)
    one = (0.0, -2.0, -3.0, 4.0, 2.0, 1.0), (4.0, 4.0)  # a single cell, its centre (2, 0, −1)
    found = decorate(pillarise(points, *one, 3, 2), *one)
    assert found.shape == (2, 3, 10)
    np.testing.assert_allclose(found[0, 0], [1, 0.25, 0.5, 0.1, -0.25, 0, 0.5, -1, 0.25, 1.5], atol=1e-6)
    np.testing.assert_allclose(found[0, 1], [1.5, 0.25, -0.5, 0.3, 0.25, 0, -0.5, -0.5, 0.25, 0.5], atol=1e-6)
    assert not found[0, 2].any()
    assert not found[1].any()
    scaled = decorate(pillarise(points, *one, 3, 2), *one, weight=[2.0] * 10, bias=[1.0] * 10)
    np.testing.assert_allclose(scaled[0, :2], found[0, :2] * 2 + 1, atol=1e-6)
    assert not scaled[0, 2].any(), "padding stays zero"
