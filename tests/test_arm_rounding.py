"""What simulations of Arm's kernels compute by tricks, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeq.graph.arithmetic.litert_xnnpack_arm import fused

singles = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)


def nearest_single(exact: Fraction) -> np.float32:
    """The float32 nearest to a fraction, ties to the even one."""
    guess = np.float32(float(exact))
    near = (np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf)))
    return min(near, key=lambda x: (abs(Fraction(float(x)) - exact), x.view(np.uint32) & 1))


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(singles, singles, singles)
def test_a_fused_product_and_sum_is_rounded_once(a: float, b: float, c: float) -> None:
    got = fused(*(torch.tensor([x], dtype=torch.float32) for x in (a, b, c))).item()
    assert np.float32(got) == nearest_single(Fraction(a) * Fraction(b) + Fraction(c))


def test_a_sum_next_to_a_tie_is_rounded_once() -> None:
    """The exact sum lies 2^-70 below the middle between two floats; in double it would fall on it, and to the even one."""
    step = 2.0**-23
    a, b, c = 1 + step, 2.0**-24 * (1 - step), 1 + step
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    assert np.float32(a * b + c) != nearest_single(exact)
    got = fused(*(torch.tensor([x], dtype=torch.float32) for x in (a, b, c))).item()
    assert np.float32(got) == nearest_single(exact)
