"""Range methods against NumPy float64: what is kept, what is chosen, what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeq.calib.ranges import METHODS, method
from edgeq.calib.ranges.affine import NARROWEST, affine
from edgeq.calib.ranges.observe import BINS, SAMPLES, Observer
from edgeq.calib.ranges.weights import channel_scales
from edgeq.calib.recipes import RECIPES, recipe
from edgeq.calib.steps import name_of
from edgeq.graph.coded import along, encode
from edgeq.spec import CHANNEL, EdgeqError, Grid

INT8 = Grid(8)
INT4 = Grid(4)
WEIGHT = Grid(8, symmetric=True, tile=CHANNEL)

floats = st.one_of(st.just(0.0), st.floats(2.0**-60, 2.0**20, width=32), st.floats(-(2.0**20), -(2.0**-60), width=32))
batches = st.lists(arrays(np.float32, st.integers(1, 60), elements=floats), min_size=1, max_size=5)


def observed(*parts: np.ndarray, histogram: bool = True) -> Observer:
    stats = Observer("x", histogram=histogram)
    for i, part in enumerate(parts):
        stats.update(torch.from_numpy(np.asarray(part, np.float32)), batch=i)
    return stats


def rounded(x: np.ndarray, low: float, high: float, spec: Grid) -> np.ndarray:
    """Fake quantization in float64, written from the definition."""
    qmin, qmax = (-(2 ** (spec.bits - 1)), 2 ** (spec.bits - 1) - 1)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (qmax - qmin) or 1.0
    zero = round(qmin - low / scale)
    return (np.clip(np.round(x / scale) + zero, qmin, qmax) - zero) * scale


# ---------------------------------------------------------------- the observer


@given(batches)
def test_extremes_and_counts_are_exact(parts: list[np.ndarray]) -> None:
    stats, everything = observed(*parts), np.concatenate(parts)
    assert (stats.low, stats.high) == (everything.min(), everything.max())
    assert stats.count == everything.size and stats.batches == len(parts)
    assert np.isclose(stats.average_low, np.mean([p.min() for p in parts]), rtol=1e-6, atol=1e-6)
    assert stats.zeros == (everything == 0).sum()
    assert stats.counts is not None and stats.counts.sum() + stats.zeros == everything.size


@given(batches)
def test_a_histogram_that_grew_equals_one_made_knowing_the_range(parts: list[np.ndarray]) -> None:
    stats, values = observed(*parts), np.concatenate(parts).astype(np.float64)
    assert stats.counts is not None
    values = values[values != 0]
    expected = np.bincount(np.floor(values / stats.width).astype(np.int64) - stats.start, minlength=BINS)
    np.testing.assert_array_equal(stats.counts, expected)
    reach = max(stats.high - stats.low, abs(stats.low), abs(stats.high))
    assert not reach or reach / stats.width > BINS / 4, "bins must not be coarser than the range needs"


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 30)), elements=floats))
def test_stacked_batches_count_like_one_after_the_other(stack: np.ndarray) -> None:
    stacked, alone = Observer("x", histogram=True), observed(*stack)
    stacked.update(torch.from_numpy(stack), batch=0, stacked=len(stack))
    for field in ("low", "high", "low_batch", "high_batch", "average_low", "average_high", "count", "batches", "zeros"):
        assert getattr(stacked, field) == getattr(alone, field), field
    np.testing.assert_array_equal(stacked.counts, alone.counts)


def test_the_bad_one_of_stacked_batches_is_named() -> None:
    with pytest.raises(EdgeqError, match=r"'x' holds NaN in calibration batch 9"):
        Observer("x").update(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, np.nan]]), batch=7, stacked=3)


@pytest.mark.parametrize("bad, word", [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
def test_what_cannot_be_calibrated_is_named(bad: float, word: str) -> None:
    stats = observed([1.0, 2.0])
    with pytest.raises(EdgeqError, match=rf"'x' holds {word} in calibration batch 7"):
        stats.update(torch.tensor([1.0, bad, 2.0]), batch=7)
    with pytest.raises(EdgeqError, match=r"'x' is empty in calibration batch 3"):
        stats.update(torch.zeros(2, 0), batch=3)


def test_a_large_tensor_is_sampled_without_aliasing_and_keeps_its_extremes() -> None:
    x = torch.zeros(4, 32, 56, 56)  # a plain stride of 7 would see only every 7th row or column
    x[..., ::7] = 1.0
    x[3, 5, 1, 1] = 9.0
    stats = Observer("x", histogram=True)
    stats.update(x, batch=0)
    assert stats.high == 9.0 and stats.counts is not None
    seen = stats.zeros + stats.counts.sum()
    assert SAMPLES / 4 < seen <= SAMPLES
    assert abs(stats.zeros / seen - 6 / 7) < 0.01


def test_watching_a_tensor_costs_less_than_the_convolution_that_made_it() -> None:
    x, conv = torch.randn(8, 32, 56, 56), torch.nn.Conv2d(32, 32, 3, padding=1)
    stats = Observer("x", histogram=True)

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a thread that waits would count as one that works
    try:
        with torch.no_grad():
            assert seconds(lambda: stats.update(x, batch=0)) < seconds(lambda: conv(x))
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------- methods


@settings(deadline=None, max_examples=30)
@given(batches)
def test_no_interval_leaves_the_extremes(parts: list[np.ndarray]) -> None:
    stats = observed(*parts)
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    for name, chosen in METHODS.items():
        a, b = chosen(stats, INT8)
        assert low <= min(a, 0.0) <= 0.0 <= max(b, 0.0) <= high, name


def test_minmax_and_moving_average() -> None:
    stats = observed([-1, 2], [-3, 8], histogram=False)
    assert method("minmax")(stats, INT8) == (-3.0, 8.0)
    assert method("moving-average")(stats, INT8) == (-2.0, 5.0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.sampled_from([99.0, 99.9, 99.99]), st.floats(0.0, 0.95))
def test_percentile_is_numpys_to_within_a_bin(seed: int, percent: float, zeros: float) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(20000).astype(np.float32) * rng.choice([0.01, 1.0, 300.0])
    x[rng.random(x.size) < zeros] = 0
    stats = observed(x[:5000], x[5000:])
    low, high = method(f"percentile:{percent}")(stats, INT8)
    share, bin_ = percent / 100 - 1e-9, 1.01 * stats.width
    assert np.mean(x <= high) >= share and np.mean(x >= low) >= share
    assert np.mean(x < high - bin_) < share + 2e-9 or high == 0
    assert np.mean(x > low + bin_) < share + 2e-9 or low == 0


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**31), st.sampled_from([INT8, INT4]), st.sampled_from(["normal", "laplace", "relu", "outlier"]))
def test_mse_is_as_good_as_brute_force_on_the_values(seed: int, spec: Grid, shape: str) -> None:
    rng = np.random.default_rng(seed)
    x = rng.laplace(size=8000) if shape == "laplace" else rng.standard_normal(8000)
    if shape == "relu":
        x = np.maximum(x, 0)
    if shape == "outlier":
        x[:3] = [40.0, -25.0, 60.0]
    x = x.astype(np.float32)
    low, high = method("mse")(observed(x), spec)
    ours = np.mean((rounded(x, low, high, spec) - x) ** 2)
    shares = np.linspace(0.02, 1, 50)
    brute = min(
        np.mean((rounded(x, x.min() * a, x.max() * b, spec) - x) ** 2)
        for a in (shares if x.min() < 0 else [1.0])
        for b in shares
    )
    assert ours <= 1.05 * brute


def test_symmetric_grids_get_the_best_magnitude() -> None:
    spec = Grid(4, symmetric=True)
    x = np.random.default_rng(5).laplace(size=20000).astype(np.float32) * np.float32(0.3) - np.float32(0.05)
    low, high = method("mse")(observed(x), spec)

    def error(bound: float) -> float:
        step = bound / 7
        return float(np.mean((np.clip(np.round(x / step), -7, 7) * step - x) ** 2))

    assert low == -high and error(high) <= 1.02 * min(error(b) for b in np.linspace(0.02, 1, 99) * np.abs(x).max())
    low, high = method("percentile:99")(observed(x), spec)
    assert low == -high and abs(np.mean(np.abs(x) <= high) - 0.99) < 0.002


def test_entropy_collapses_on_a_sparse_birds_eye_view_and_not_without_its_zeros() -> None:
    rng = np.random.default_rng(0)
    x = np.abs(rng.standard_normal(400000)).astype(np.float32)
    x[rng.random(x.size) < 0.988] = 0  # the share in PointPillars' input on KITTI
    stats = observed(*np.split(x, 8))
    threshold = {name: method(name)(stats, INT8)[1] for name in METHODS}
    assert threshold["entropy"] < np.median(x[x > 0]), "the zeros drown everything else"
    assert threshold["entropy:nonzero"] > np.percentile(x[x > 0], 97)
    assert threshold["mse"] > np.percentile(x[x > 0], 97)


def test_entropy_agrees_with_the_slides_pseudocode() -> None:
    rng = np.random.default_rng(3)
    x = np.abs(rng.laplace(size=60000)).astype(np.float32)
    stats = observed(x)
    width = stats.width * (2 if x.max() / stats.width > BINS / 2 else 1)
    bins = np.bincount((x.astype(np.float64) / width).astype(int)).astype(np.float64)

    def divergence(i: int) -> float:
        p = bins[:i].copy()
        p[i - 1] += bins[i:].sum()
        q = np.zeros(i)
        for level in range(128):
            a, b = level * i // 128, (level + 1) * i // 128
            full = [k for k in range(a, b) if bins[k] > 0]
            for k in full:
                q[k] = bins[a:b].sum() / len(full)
        p, q = p / p.sum(), q / q.sum()
        return float("inf") if ((p > 0) & (q == 0)).any() else float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))

    ours = method("entropy")(stats, INT8)[1]
    values = {i: divergence(i) for i in range(128, len(bins), 40)}
    chosen = divergence(round(ours * len(bins) / float(x.max())))
    assert chosen <= min(values.values()) * 1.05 + 1e-9


def test_every_recipe_is_made_of_parts_that_exist() -> None:
    for name, chosen in RECIPES.items():
        assert recipe(name) is chosen and chosen.name == name and chosen.source
        assert {name_of(step) for step in chosen.steps} >= {"ranges", "scales", "round"}
    with pytest.raises(EdgeqError, match="unknown recipe 'fast': use default, minmax"):
        recipe("fast")


def test_unknown_methods_are_listed() -> None:
    with pytest.raises(EdgeqError, match="minmax, moving-average, percentile, mse, entropy"):
        method("magic")
    for text in ("percentile:12", "percentile:abc", "percentile:101"):
        with pytest.raises(EdgeqError, match="percentage"):
            method(text)


# ---------------------------------------------------------------- grids


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(2, 8), st.booleans())
def test_zero_lies_on_the_grid_and_the_ends_within_a_step(a: float, b: float, bits: int, symmetric: bool) -> None:
    spec = Grid(bits, symmetric)
    low, high = min(a, b), max(a, b)
    got = affine(low, high, spec)
    (scale,), (zero,) = got.scale, got.zero_point
    assert scale > 0 and np.float32(scale) == scale
    assert spec.qmin <= zero <= spec.qmax and (not symmetric or zero == 0)
    half = 0.5 * scale + 1e-6 * max(abs(low), abs(high))
    assert (spec.qmin - zero) * scale <= min(low, 0.0) + half
    assert (spec.qmax - zero) * scale >= max(high, 0.0) - half


def test_degenerate_ranges_get_a_usable_scale() -> None:
    assert affine(0.0, 0.0, INT8).scale == (1.0,)
    assert affine(0.0, 1e-30, INT8).scale == (NARROWEST,)
    assert affine(2.0, 3.0, INT8).zero_point == (-128,)
    assert affine(-3.0, -2.0, INT8).zero_point == (127,)


# ---------------------------------------------------------------- weights


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 8), st.sampled_from([0, 1]), st.sampled_from(["minmax", "mse"]))
def test_weights_channel_by_channel(seed: int, bits: int, axis: int, how: str) -> None:
    spec = Grid(bits, symmetric=True, tile=CHANNEL)
    rng = np.random.default_rng(seed)
    w = (rng.standard_normal((5, 6, 3, 3)) * rng.uniform(0.1, 3, (5, 6, 1, 1))).astype(np.float32)
    scales = channel_scales(torch.from_numpy(w), axis, spec, how)
    stored = encode(torch.from_numpy(w), spec, along(scales, axis, 4)).codes
    assert scales.dtype == torch.float32 and stored.dtype == torch.int8 and int(stored.abs().max()) <= spec.qmax
    rows, got = np.moveaxis(w, axis, 0).astype(np.float64), np.moveaxis(stored.numpy(), axis, 0)
    for channel, q, scale in zip(rows, got, scales.double().numpy(), strict=True):
        top = np.abs(channel).max() / spec.qmax

        def error(s: float, channel: np.ndarray = channel) -> float:
            return float(np.sum((np.clip(np.round(channel / s), -spec.qmax, spec.qmax) * s - channel) ** 2))

        if how == "minmax":
            assert np.isclose(scale, top, rtol=1e-6)
        else:
            assert error(scale) <= 1.02 * min(error(top * k) for k in np.linspace(0.3, 1, 71)) + 1e-12
        assert np.isclose(np.sum((q * scale - channel) ** 2), error(scale), rtol=1e-4, atol=1e-9)


def test_dead_channels_get_a_sane_scale() -> None:
    w = torch.randn(4, 8)
    w[1], w[2] = 0.0, 1e-12
    scales = channel_scales(w, 0, WEIGHT, "minmax")
    assert bool((scales >= scales.max() * 2.0**-16).all())
    assert bool((channel_scales(torch.zeros(3, 2), 0, WEIGHT, "mse") == 1).all())
    with pytest.raises(EdgeqError, match="NaN or Inf"):
        channel_scales(torch.full((2, 2), torch.nan), 0, WEIGHT, "minmax")
    with pytest.raises(EdgeqError, match="unknown weight range method 'entropy'"):
        channel_scales(w, 0, WEIGHT, "entropy")
