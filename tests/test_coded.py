"""Codes on grids: encode and decode against NumPy, for every shape of scale, table and storage; what does not fit raises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from edgeq.graph.coded import Coded, encode, storage
from edgeq.graph.numbers import Resolved
from edgeq.spec import CHANNEL, Grid, QParams, Tile
from edgeq.spec.grid import log2

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


def test_numbers_come_back_from_their_file(tmp_path: Path) -> None:
    """Every kind of grid, bit for bit, without a graph; a file that is cut is an error."""
    draw = torch.Generator().manual_seed(0)

    def coded(grid: Grid, scale: tuple[int, ...], zero: bool = False) -> Coded:
        codes = torch.randint(grid.qmin, grid.qmax + 1, (4, 64), generator=draw).to(storage(grid))
        offset = torch.randint(-3, 4, scale, generator=draw, dtype=torch.int32) if zero else None
        return Coded(grid, codes, torch.rand(scale, generator=draw) + 0.1, offset)

    resolved = Resolved(
        {"x": QParams((0.1,), (3,)), "conv": QParams((2.0**-20,), (0,), -32768, 32767)},
        {
            "a/linear": coded(Grid(4, symmetric=True, tile=CHANNEL), (4, 1)),
            "b/linear": coded(Grid(4, symmetric=True, tile=Tile("group", 32)), (4, 2)),
            "c/linear": coded(Grid(8, symmetric=True, tile=CHANNEL), (1, 64)),
            "d/linear": coded(log2(4), (4, 1)),
            "e/linear": coded(Grid(16, tile=CHANNEL), (4, 1), zero=True),
        },
        {"a/linear": torch.randn(4, generator=draw)},
    )
    resolved.save(tmp_path / "numbers.safetensors")
    found = Resolved.load(tmp_path / "numbers.safetensors")
    assert found.activations == resolved.activations and found.weights.keys() == resolved.weights.keys()
    assert torch.equal(found.biases["a/linear"], resolved.biases["a/linear"])
    for key, wanted in resolved.weights.items():
        held = found.weights[key]
        assert held.grid == wanted.grid and held.codes.dtype == wanted.codes.dtype
        assert torch.equal(held.codes, wanted.codes) and torch.equal(held.scale, wanted.scale)
        assert (held.zero is None) is (wanted.zero is None) and torch.equal(held.decode(), wanted.decode())
    whole = (tmp_path / "numbers.safetensors").read_bytes()
    (tmp_path / "numbers.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SafetensorError):
        Resolved.load(tmp_path / "numbers.safetensors")
