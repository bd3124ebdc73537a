"""Integer sums are exact whatever the geometry: against NumPy int64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.graph.arithmetic.sums import accumulate
from edgeq.graph.ops import ConvAttrs
from edgeq.spec import QParams


@dataclass
class Op:
    """The fields of an IntegerOp that a sum reads."""

    kind: str
    weight: torch.Tensor
    bias: torch.Tensor
    input_qparams: tuple[QParams, ...]
    attrs: Any


def ints(random: np.random.Generator, shape: tuple[int, ...], extreme: bool) -> np.ndarray:
    drawn = random.integers(-128, 128, shape)
    return np.where(random.random(shape) < 0.9, 127, drawn) if extreme else drawn


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    groups=st.sampled_from([1, 2, 4]),
    per_group=st.integers(1, 300),
    stride=st.integers(1, 3),
    pad=st.integers(0, 2),
    dilation=st.integers(1, 2),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 3)]),
    zero_point=st.integers(-128, 127),
    extreme=st.booleans(),
)
def test_convolution_sums_are_exact(
    seed: int,
    groups: int,
    per_group: int,
    stride: int,
    pad: int,
    dilation: int,
    kernel: tuple[int, int],
    zero_point: int,
    extreme: bool,
) -> None:
    random = np.random.default_rng(seed)
    x = ints(random, (1, groups * per_group, 7, 6), extreme).astype(np.int8)
    w = np.clip(ints(random, (groups * 2, per_group, *kernel), extreme), -127, 127).astype(np.int8)
    bias = random.integers(-(2**22), 2**22, groups * 2)
    attrs = ConvAttrs((stride, stride), (pad, pad), (dilation, dilation), groups)
    op = Op("conv2d", torch.from_numpy(w), torch.from_numpy(bias), (QParams((0.1,), (zero_point,)),), attrs)
    got = accumulate(op, torch.from_numpy(x)).numpy()  # type: ignore[arg-type] # the fields that are read
    wanted = oracle.conv2d(x, w, bias, zero_point, (stride,) * 2, (pad,) * 2, (dilation,) * 2, groups)
    assert np.array_equal(got, wanted)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    stride=st.integers(1, 3),
    pad=st.integers(0, 1),
    kernel=st.sampled_from([(2, 2), (4, 4), (3, 2)]),
    extra=st.integers(0, 1),
    zero_point=st.integers(-128, 127),
)
def test_transposed_convolution_sums_are_exact(
    seed: int, stride: int, pad: int, kernel: tuple[int, int], extra: int, zero_point: int
) -> None:
    random = np.random.default_rng(seed)
    extra = min(extra, stride - 1)
    x = random.integers(-128, 128, (1, 5, 4, 3)).astype(np.int8)
    w = random.integers(-127, 128, (5, 3, *kernel)).astype(np.int8)
    bias = random.integers(-1000, 1000, 3)
    attrs = ConvAttrs((stride,) * 2, (pad,) * 2, (1, 1), 1, (extra,) * 2)
    op = Op("conv_transpose2d", torch.from_numpy(w), torch.from_numpy(bias), (QParams((0.1,), (zero_point,)),), attrs)
    got = accumulate(op, torch.from_numpy(x)).numpy()  # type: ignore[arg-type] # the fields that are read
    wanted = oracle.conv_transpose2d(x, w, bias, zero_point, (stride,) * 2, (pad,) * 2, (extra,) * 2)
    assert np.array_equal(got, wanted)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), width=st.integers(1, 4000), zero_point=st.integers(-128, 127))
def test_linear_sums_are_exact_beyond_float32(seed: int, width: int, zero_point: int) -> None:
    random = np.random.default_rng(seed)
    x = ints(random, (2, 3, width), True).astype(np.int8)
    w = np.clip(ints(random, (4, width), True), -127, 127).astype(np.int8)
    bias = random.integers(-(2**22), 2**22, 4)
    op = Op("linear", torch.from_numpy(w), torch.from_numpy(bias), (QParams((0.1,), (zero_point,)),), None)
    got = accumulate(op, torch.from_numpy(x)).numpy()  # type: ignore[arg-type] # the fields that are read
    wanted = (x.astype(np.int64) - zero_point) @ w.astype(np.int64).T + bias
    assert np.array_equal(got, wanted)
