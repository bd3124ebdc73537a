"""Codes on grids: encode and decode against NumPy, for every shape of scale, table and storage; what does not fit raises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.graph.coded import Coded, encode, storage
from edgeq.spec import CHANNEL, Grid, QParams, Tile

LOG2 = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0)


def wide(scale: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A scale as large as the tensor, by Kronecker product."""
    found: np.ndarray = np.kron(scale, np.ones([n // k for n, k in zip(shape, scale.shape, strict=True)]))
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([(1, 1), (6, 1), (1, 64), (6, 2), (6, 4), (2, 64)]),
    st.integers(2, 16),
    st.booleans(),
)
def test_every_shape_of_scale(seed: int, shape: tuple[int, int], bits: int, affine: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((6, 64)).astype(np.float32)
    scale = (rng.uniform(0.5, 2.0, shape) * 3 / 2 ** (bits - 1)).astype(np.float32)
    grid = Grid(bits, symmetric=not affine, tile=Tile("group", 32))
    zero = rng.integers(grid.qmin, grid.qmax + 1, shape) if affine else None
    coded = encode(
        torch.from_numpy(x), grid, torch.from_numpy(scale), None if zero is None else torch.from_numpy(zero).int()
    )
    step, at = wide(scale, x.shape).astype(np.float32), 0 if zero is None else wide(zero, x.shape)
    wanted = np.clip(np.round(x / step) + at, grid.qmin, grid.qmax)
    assert coded.codes.dtype == (torch.int8 if bits <= 8 else torch.int16)
    np.testing.assert_array_equal(coded.codes.numpy(), wanted)
    np.testing.assert_array_equal(coded.decode().numpy(), ((wanted - at).astype(np.float32) * step))


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_a_table_takes_the_nearest_of_its_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, scale = rng.standard_normal((4, 8)).astype(np.float32) * 5, rng.uniform(0.5, 2, (4, 1)).astype(np.float32)
    coded = encode(torch.from_numpy(x), Grid(3, tile=CHANNEL, table=LOG2), torch.from_numpy(scale))
    distance = np.abs(x[..., None] / scale[..., None] - np.array(LOG2, np.float32))
    np.testing.assert_allclose(coded.decode().numpy() / scale, np.array(LOG2)[distance.argmin(-1)], rtol=1e-6)


def test_what_does_not_fit_raises() -> None:
    wide_grid, codes, scale = Grid(16), torch.zeros(4, 8, dtype=torch.int16), torch.ones(4, 1)
    Coded(wide_grid, codes, scale)
    for grid, stored, factor, words in (
        (wide_grid, codes.to(torch.int8), scale, "16 bits do not fit torch.int8"),
        (Grid(8), codes + 300, scale, "codes from 300 to 300"),
        (Grid(8), codes, torch.ones(3, 1), "does not divide"),
        (Grid(8), codes, torch.ones(4), "does not divide"),
    ):
        with pytest.raises(ValueError, match=words):
            Coded(grid, stored, factor)
    assert storage(Grid(9)) == torch.int16 and storage(Grid(8)) == torch.int8


def test_grids_that_mean_nothing_are_refused() -> None:
    for wrong in (
        {"bits": 1, "symmetric": True}, {"bits": 0}, {"bits": 17}, {"bits": 3, "table": (0.0, 1.0)},
        {"bits": 1, "table": (1.0, -1.0)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"grid|table"):
            Grid(**wrong)  # type: ignore[arg-type] # options of Grid
    assert (Grid(1, symmetric=True, full_range=True).qmin, Grid(1).qmax) == (-1, 0)
    with pytest.raises(ValueError, match="size"):
        Tile("group")


def test_a_tensor_of_many_scales_has_no_single_one() -> None:
    several = QParams((1.0, 2.0), (0, 0), axis=0)
    for name in ("step", "zero"):
        with pytest.raises(ValueError, match="unpack"):
            getattr(several, name)
    assert (QParams((2.0,), (3,)).step, QParams((2.0,), (3,)).zero) == (2.0, 3)
