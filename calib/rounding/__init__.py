"""Rounding methods: up or down, for each weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor

from edgeq.calib.rounding import nearest, squant
from edgeq.spec import EdgeqError, QuantSpec

Rounding = Callable[[Tensor, Tensor, int, QuantSpec], Tensor]

METHODS: Final[dict[str, Rounding]] = {"nearest": nearest.integers, "squant": squant.integers}


def method(name: str) -> Rounding:
    """The rounding called `name`: `(weight, scales float32 [C], channel axis, spec) -> int8` in the weight's shape.

    Raises:
        EdgeqError: there is no such rounding.
    """
    if name not in METHODS:
        raise EdgeqError(f"unknown rounding {name!r}: use {' or '.join(METHODS)}")
    return METHODS[name]
