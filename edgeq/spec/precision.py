"""Precisions: what a layer computes in, and their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgeq.spec.errors import EdgeqError
from edgeq.spec.grid import CHANNEL, Grid


@dataclass(frozen=True, slots=True)
class Precision:
    """What a layer computes in: a weight spec and an activation spec; None keeps that side in `dtype`."""

    name: str
    weight: Grid | None = None
    activation: Grid | None = None
    dtype: Literal["float32", "float16"] = "float32"


def precision(name: str) -> Precision:
    """Parse `fp32`, `fp16`, `w8` (weight-only) or `w8a8`, `w4a8`, `w6a6`, ...; bits from 2 to 8.

    Raises:
        EdgeqError: the name is not a precision.
    """
    text = name.lower()
    if text == "fp32":
        return Precision("fp32")
    if text == "fp16":
        return Precision("fp16", dtype="float16")
    match = re.fullmatch(r"w([2-8])(?:a([2-8]))?", text)
    if match is None:
        raise EdgeqError(
            f"unknown precision {name!r}: use fp32, fp16, w8 (weights only) or wXaY with X and Y from 2 to 8, such as w8a8"
        )
    weight = Grid(int(match[1]), symmetric=True, tile=CHANNEL)
    activation = Grid(int(match[2])) if match[2] else None
    return Precision(text, weight, activation)
