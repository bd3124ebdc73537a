"""Sparse 3D convolution by gather and linear against torch's dense convolution, and what happens to odd clouds."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgeq.lidar.networks import CenterPointVoxel, SparseConv3d
from edgeq.lidar.pillars import pillarise
from edgeq.lidar.voxels import Voxels, VoxelSettings, voxelise

SMALL = VoxelSettings((0.0, 0.0, 0.0, 8.0, 8.0, 4.0), (8, 8, 4), (64, 64, 32))


def cloud(seed: int, count: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.random((count, 4)) * [8.0, 8.0, 4.0, 1.0]).astype(np.float32)


def dense(rows: Tensor, sites: np.ndarray, grid: tuple[int, int, int]) -> Tensor:
    """Rows at their sites of a dense volume [1, C, Y, X, Z]."""
    volume = torch.zeros(1, rows.shape[1], *grid)
    volume[0, :, sites[:, 0], sites[:, 1], sites[:, 2]] = rows.T
    return volume


def sites_of(points: np.ndarray) -> np.ndarray:
    """Occupied cells (y, x, z), in the order of their cells, found without the code under test."""
    cells = np.floor(points[:, [1, 0, 2]]).astype(int)
    return np.array(sorted({tuple(c) for c in cells}))


def kernel(layer: SparseConv3d) -> Tensor:
    """The linear's weight [C_out, 27·C_in] as a dense kernel [C_out, C_in, 3, 3, 3] over (y, x, z)."""
    weight = layer.linear.weight
    return weight.view(weight.shape[0], 3, 3, 3, -1).permute(0, 4, 1, 2, 3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), padded=st.booleans())
def test_submanifold_convolution_is_the_dense_one_at_active_sites(seed: int, count: int, padded: bool) -> None:
    torch.manual_seed(seed)
    points = cloud(seed, count)
    found, sites = voxelise(points, SMALL, padded), sites_of(points)
    layer = SparseConv3d(8, 5).eval()
    with torch.no_grad():
        rows = layer(torch.from_numpy(found.features), torch.from_numpy(found.same1))[: len(sites)]
        volume = dense(torch.from_numpy(found.features[: len(sites)]), sites, SMALL.grid)
        wanted = F.relu(F.conv3d(volume, kernel(layer), padding=1) / (1 + 1e-3) ** 0.5)
    torch.testing.assert_close(rows, wanted[0][:, *sites.T].T, atol=1e-5, rtol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60))
def test_strided_convolution_is_the_dense_one_wherever_a_tap_meets_a_site(seed: int, count: int) -> None:
    torch.manual_seed(seed)
    points = cloud(seed, count)
    found, sites = voxelise(points, SMALL), sites_of(points)
    occupied = F.max_pool3d(dense(torch.ones(len(sites), 1), sites, SMALL.grid), 3, 2, 1)[0, 0]
    out = occupied.nonzero().numpy()
    layer = SparseConv3d(8, 5).eval()
    with torch.no_grad():
        rows = layer(torch.from_numpy(found.features), torch.from_numpy(found.down2))
        volume = dense(torch.from_numpy(found.features[: len(sites)]), sites, SMALL.grid)
        wanted = F.relu(F.conv3d(volume, kernel(layer), stride=2, padding=1) / (1 + 1e-3) ** 0.5)
    torch.testing.assert_close(rows[: len(out)], wanted[0][:, *out.T].T, atol=1e-5, rtol=1e-5)
    assert not rows[len(out) :].any()  # padded rows see zeros only, and there is no bias here


def test_padding_up_to_the_limits_does_not_change_the_detector() -> None:
    torch.manual_seed(0)
    network = CenterPointVoxel(bev=(2, 2, 1)).eval()
    points = cloud(0, 90)
    with torch.no_grad():
        tight, full = (network(*map(torch.from_numpy, voxelise(points, SMALL, p).inputs())) for p in (False, True))
    for name, value in tight.items():
        torch.testing.assert_close(value, full[name])


def test_sites_beyond_a_limit_are_counted() -> None:
    points = cloud(1, 500)
    occupied = len(sites_of(points))
    found = voxelise(points, VoxelSettings(SMALL.point_range, SMALL.grid, (20, 64, 32)))
    assert found.dropped[0] == occupied - 20 and len(found.features) == 20
    assert (found.features != 0).any(1).all()


def test_sites_with_the_most_points_stay_in_the_order_of_their_cells() -> None:
    points = cloud(2, 150)
    counts = Counter(tuple(c) for c in np.floor(points[:, [1, 0, 2]]).astype(int))
    kept = sorted(c for c, n in counts.items() if n > 1)
    assert len(kept) < len(counts)
    found = voxelise(points, VoxelSettings(SMALL.point_range, SMALL.grid, (len(kept), 64, 32)))
    centre = (np.array(kept)[:, [1, 0, 2]] + 0.5) / [4, 4, 2] - 1  # x, y, z, from -1 to 1 over the range
    np.testing.assert_allclose(found.features[:, 5:], centre, atol=1e-6)


@pytest.mark.parametrize("limits", [(64, 1, 1), (64, 64, 1)], ids=["level 2", "level 3"])
def test_later_levels_keep_the_sites_with_the_most_points_below(limits: tuple[int, int, int]) -> None:
    near, far = [0.5, 0.5, 0.5, 0.5], [7.5, 7.5, 3.5, 0.5]  # the first and the last cell
    found = voxelise(np.array([near] + [far] * 9, np.float32), VoxelSettings(SMALL.point_range, SMALL.grid, limits))
    assert found.cells.tolist() == [1, 1, 1, 0]


def test_no_side_of_the_map_goes_blind_where_all_cells_are_alike() -> None:
    x, y = (a.ravel() for a in np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5))
    points = np.stack([x, y, np.full(4096, 0.5), np.full(4096, 0.5)], 1).astype(np.float32)
    area = (0.0, 0.0, 0.0, 64.0, 64.0, 4.0)
    found = voxelise(points, VoxelSettings(area, (64, 64, 4), (1024, 512, 128)))
    assert all(found.dropped)
    quadrant = (found.features[:, [5, 6]] > 0) @ [1, 2]
    assert np.bincount(quadrant, minlength=4).min() > 200
    last = (found.cells.reshape(16, 16) != 128).reshape(2, 8, 2, 8).sum((1, 3))
    assert last.min() > 20
    pillars = pillarise(points, area, (1, 1), 4, 1024).cells
    assert np.bincount(pillars // 64 // 32 * 2 + pillars % 64 // 32, minlength=4).min() > 200


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((0, 4), np.float32),
        np.full((7, 4), 99.0, np.float32),
        np.full((7, 4), np.nan, np.float32),
    ],
    ids=["empty", "out of range", "NaN"],
)
def test_a_cloud_without_usable_points_has_no_voxels(points: np.ndarray) -> None:
    found: Voxels = voxelise(points, SMALL)
    assert not found.features.any() and found.dropped == (0, 0, 0)
    assert (found.cells == SMALL.limits[2]).all() and (found.same1 == SMALL.limits[0]).all()


def test_three_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="four columns"):
        voxelise(np.zeros((5, 3), np.float32), SMALL)
