"""Rounding of weights: the integers are neighbours of the real value, and what must cancel does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.calib.problem import Problem
from edgeq.calib.ranges.weights import channel_scales
from edgeq.calib.solvers import names, solver
from edgeq.graph.coded import Coded, along, encode
from edgeq.spec import CHANNEL, EdgeqError, Grid

SHAPES = st.sampled_from([(6, 1, 3, 3), (8, 5, 3, 3), (7, 12, 1, 1), (4, 20), (3, 4, 5)])


def rounded(name: str, w: torch.Tensor, scales: torch.Tensor, axis: int, grid: Grid) -> Coded:
    """Weights by a solver that looks at no data."""
    start = encode(w, grid, along(scales, axis, w.dim()))
    return solver(name).solve(Problem(w, axis, start), start)


def errors(w: np.ndarray, q: torch.Tensor, scales: torch.Tensor, axis: int) -> np.ndarray:
    """Rounding errors in steps, float64 [C, C_in, taps]."""
    w, stored = np.moveaxis(w, axis, 0).astype(np.float64), np.moveaxis(q.numpy(), axis, 0).astype(np.float64)
    step = scales.double().numpy().reshape(-1, *[1] * (w.ndim - 1))
    return (stored - w / step).reshape(w.shape[0], w.shape[1], -1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), SHAPES, st.sampled_from([0, 1]), st.integers(2, 8), st.sampled_from(["minmax", "mse"]))
def test_squant_cancels_the_errors_of_kernels_and_channels(
    seed: int, shape: tuple[int, ...], axis: int, bits: int, ranges: str
) -> None:
    spec = Grid(bits, symmetric=True, tile=CHANNEL)
    w = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    scales = channel_scales(torch.from_numpy(w), axis, spec, ranges)
    q = rounded("squant", torch.from_numpy(w), scales, axis, spec).codes
    plain = errors(w, rounded("nearest", torch.from_numpy(w), scales, axis, spec).codes, scales, axis)
    error = errors(w, q, scales, axis)
    assert q.dtype == torch.int8 and q.shape == w.shape and int(q.abs().max()) <= spec.qmax
    clipped = np.abs(plain) > 0.5 + 1e-5
    assert np.all(np.abs(error)[~clipped] <= 1.0 + 1e-5), "either neighbour, never further"
    if not clipped.any() and bits > 2:  # at 2 bits nearly every weight stands at an end of the grid
        assert np.all(np.abs(error.sum((1, 2))) <= 0.5 + 1e-5)
        assert np.all(np.abs(error.sum(2)) <= 1.0 + 1e-5), "the channel's balance moves a kernel by one step at most"
    assert np.abs(error.sum((1, 2))).sum() <= np.abs(plain.sum((1, 2))).sum() + 1e-5


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31))
def test_squant_keeps_the_mean_output_of_a_depthwise_layer(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(16, 1, 3, 3, generator=generator)
    w = (w - w.mean((2, 3), keepdim=True)) * 10  # edge detectors: large weights that sum to nothing
    x = torch.rand(2, 16, 1, 1, generator=generator).expand(-1, -1, 12, 12) + 5.0  # a flat, positive input
    spec = Grid(8, symmetric=True, tile=CHANNEL)
    scales = channel_scales(w, 0, spec, "minmax")
    offset = {}
    for name in ("nearest", "squant"):
        back = rounded(name, w, scales, 0, spec).decode()
        offset[name] = float((torch.conv2d(x, back - w, groups=16)).square().mean())
    assert offset["squant"] < 0.6 * offset["nearest"]


def test_unknown_roundings_are_listed() -> None:
    with pytest.raises(EdgeqError, match=f"use {', '.join(names())}"):
        solver("magic")
