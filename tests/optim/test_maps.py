"""The 256 values are the published ones, and encoding finds the nearest, on every path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.optim import maps, native

PATHS = (*native.paths(), "torch")


def encode(path: str, x: np.ndarray, signed: bool, size: int) -> tuple[np.ndarray, np.ndarray]:
    tensor = torch.tensor(x, dtype=torch.float32)
    if path == "torch":
        codes, scales = maps.encode(tensor, maps.dynamic_map(signed), size)
    else:
        codes, scales = native._native(path).encode(tensor, signed, size)
    return codes.numpy(), scales.numpy()


def decode(path: str, codes: np.ndarray, scales: np.ndarray, signed: bool, size: int) -> np.ndarray:
    given_codes, given_scales = torch.tensor(codes), torch.tensor(scales)
    if path == "torch":
        return maps.decode(given_codes, given_scales, maps.dynamic_map(signed), size).numpy()
    return native._native(path).decode(given_codes, given_scales, signed, size).numpy()


def published(signed: bool) -> torch.Tensor:
    """Dynamic quantization by the paper's text: decades of equally spaced fractions, each twice as fine, 0 and 1."""
    found = [0.0, 1.0]
    for exponent in range(7):
        limits = torch.linspace(0.1, 1, 2 ** (exponent if signed else exponent + 1) + 1)
        fractions = 10.0 ** (exponent - 6) * ((limits[:-1] + limits[1:]) / 2)
        found += fractions.tolist()
        found += (-fractions).tolist() if signed else []
    return torch.tensor(sorted(found))


@pytest.mark.parametrize("signed", [True, False])
def test_the_maps_are_the_published_ones(signed: bool) -> None:
    which = maps.dynamic_map(signed)
    assert torch.equal(which.values, published(signed))
    assert which.values[which.zero] == 0


def nearest(ratio: np.ndarray, signed: bool) -> np.ndarray:
    """Distances in float64; among equals the smaller magnitude. Without a sign, nothing but zero is nearest to zero."""
    values = maps.dynamic_map(signed).values.numpy().astype(np.float64)
    order = np.argsort(np.abs(values), kind="stable")
    found = order[np.argmin(np.abs(ratio.astype(np.float64)[:, None] - values[order]), axis=1)]
    return found if signed else np.where(ratio > 0, np.maximum(found, 1), 0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("signed", [True, False])
def test_around_every_midpoint_the_nearest_value_is_taken(signed: bool, path: str) -> None:
    positive = maps.dynamic_map(signed).magnitudes.numpy().astype(np.float64)
    middle = ((positive[1:] + positive[:-1]) / 2).astype(np.float32)
    ratio = np.concatenate(
        [middle, np.nextafter(middle, np.float32(2)), np.nextafter(middle, np.float32(0)), [1, 0, 1e-9, 1e-30]]
    )
    ratio = (np.concatenate([ratio, -ratio]) if signed else ratio).astype(np.float32)
    codes, scales = encode(path, ratio, signed, 4096)
    assert scales.tolist() == [1]
    assert np.array_equal(codes, nearest(ratio, signed))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("signed", [True, False])
def test_every_float_near_a_midpoint_or_a_power_of_two_is_on_the_right_side(signed: bool, path: str) -> None:
    """Where a kernel finds the value by a line whose rounding may put it one too high, or by bins; by NumPy in float64."""
    positive = maps.dynamic_map(signed).magnitudes.numpy().astype(np.float64)
    middle = (positive[1:] + positive[:-1]) / 2
    edges = np.concatenate([middle, 2.0 ** -np.arange(1, 140)]).astype(np.float32).view(np.uint32)
    near = edges[:, None].astype(np.int64) + np.arange(-150, 151)
    ends = (np.arange(1, 0x3F80)[:, None] << 16) + np.arange(-1, 1)  # of all bins
    bits = np.unique(np.clip(np.concatenate([near.ravel(), ends.ravel()]), 0, 0x3F800000))
    ratio = np.resize(bits, (-(-len(bits) // 4095), 4095)).astype(np.uint32).view(np.float32)
    x = np.concatenate([ratio, np.ones((len(ratio), 1), np.float32)], axis=1).reshape(-1)
    index = np.searchsorted(middle, x.astype(np.float64))  # among equals the smaller
    for sign in (1, -1) if signed else (1,):
        codes, scales = encode(path, x * np.float32(sign), signed, 4096)
        assert (scales == 1).all()
        wanted = (
            127 + sign * np.minimum(index, 128 if sign > 0 else 127) if signed else np.where(x > 0, index.clip(1), 0)
        )
        assert np.array_equal(codes, wanted)


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=25, deadline=None)
@given(st.floats(-44, 37), st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([64, 256, 2048]))
def test_a_block_is_within_half_a_step_of_what_went_in(
    path: str, log: float, seed: int, signed: bool, size: int
) -> None:
    """From denormal numbers to 1e37: zeros are zeros, the largest is kept, all else lies half a step off at most.

    What has no sign and is not zero does not become zero either: it lies a step off at most where that is the smallest value.
    """
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((3, size)) * draw.choice([0, 1e-6, 1e-3, 1], (3, size))
    x = (rows[:, : size - 5] * 10.0**log).astype(np.float32).reshape(-1)
    x = x if signed else np.abs(x)
    codes, scales = encode(path, x, signed, size)
    back = decode(path, codes, scales, signed, size).astype(np.float64)
    values = maps.dynamic_map(signed).values.numpy().astype(np.float64)
    half = np.diff(values) / 2
    half[0] *= 1 if signed else 2
    for start, scale in zip(range(0, len(x), size), scales, strict=True):
        part, got = x[start : start + size].astype(np.float64), back[start : start + size]
        top = np.abs(part).max()
        assert scale == top
        assert (got[part == 0] == 0).all()
        if not top:
            continue
        bound = half[np.clip(np.searchsorted(values, part / top), 1, 255) - 1]
        bound = np.where(part / top < values[0], np.abs(part / top - values[0]), bound)  # −1 is no value
        rounding = 1e-6 * np.abs(part) + 2.0**-149  # float32's, of the ratio and of the product
        assert (np.abs(got - part) <= bound * top + rounding).all()
