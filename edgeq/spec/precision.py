"""Precisions: what a layer computes in, and their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from edgeq.spec.errors import EdgeqError
from edgeq.spec.grid import CHANNEL, Grid, Tile, log2


@dataclass(frozen=True, slots=True)
class Precision:
    """What a layer computes in: a weight spec and an activation spec; None keeps that side in `dtype`."""

    name: str
    weight: Grid | None = None
    activation: Grid | None = None
    dtype: Literal["float32", "float16"] = "float32"


def precision(name: str) -> Precision:
    """Parse `fp32`, `fp16`, `w8` (weights only), `w4g32` (weights only, a scale for each 32 neighbours in a channel),
    `w4log2` (weights only, powers of two) or `w8a8`, `w4a8`, `w8a16`, ...; weights have 2 to 8 bits, activations 2 to 16.

    Raises:
        EdgeqError: the name is not a precision.
    """
    text = name.lower()
    if text == "fp32":
        return Precision("fp32")
    if text == "fp16":
        return Precision("fp16", dtype="float16")
    match = re.fullmatch(r"w([2-8])(?:a([2-9]|1[0-6])|g([1-9][0-9]{0,3})|(log2))?", text)
    if match is None:
        raise EdgeqError(
            f"unknown precision {name!r}: use fp32, fp16, w8 (weights only), w4g32 (in groups of 32), w4log2 (powers of two) or "
            "wXaY with X from 2 to 8 and Y from 2 to 16, such as w8a8"
        )
    if match[4]:
        return Precision(text, log2(int(match[1])))
    weight = Grid(int(match[1]), symmetric=True, tile=Tile("group", int(match[3])) if match[3] else CHANNEL)
    activation = Grid(int(match[2])) if match[2] else None
    return Precision(text, weight, activation)


def named(weight: Grid | None, activation: Grid | None) -> str:
    """The name of a precision by its grids."""
    if weight is None:
        return "fp32"
    group = f"g{weight.tile.size}" if weight.tile.over == "group" else ""
    return f"w{weight.bits}{group}" + ("" if activation is None else f"a{activation.bits}")
