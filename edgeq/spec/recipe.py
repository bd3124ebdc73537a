"""Recipes: a published method as parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """How the rounding is learned on calibration data, span by span in forward order.

    span: what is judged together: a `layer`, a `block` between two cuts of the network, two blocks (`cross-block`).
    objectives: what must stay the same, as names of edgeq.calib.objectives: `mse` of the span's output, `tgpl` of the
        network's answers.
    balanced: empty cells of a sparse map weigh at most as much together as the occupied ones.
    steps: gradient steps on a layer's sums over the data (edgeq.calib.gram), whose cost does not depend on the data.
    polish: gradient steps through the span itself, and through the network behind it for `tgpl`; 0 for none.
    batch: frames in one of these, at most. activations: they learn the scales of the span's activations as well.
    """

    span: Literal["layer", "block", "cross-block"] = "layer"
    objectives: tuple[str, ...] = ("mse",)
    balanced: bool = False
    steps: int = 250
    polish: int = 0
    batch: int = 4
    activations: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published method as parts: a range method per side, then a rounding of the weights, then what is learned.

    activations, weights: a range method with options, as `percentile:99.99` or `mse`.
    rounding: a method of edgeq.calib.rounding. reconstruction: learned from there on; None leaves it at that.
    ends: least precision of the first and the last layers where no plan says otherwise; None treats them as all others.
    equalised: channels are brought to like ranges first (edgeq.calib.equalise). corrected: what a layer's output cells have
        in common as an error goes into its bias (edgeq.calib.correct).
    """

    name: str
    summary: str
    source: str
    activations: str = "minmax"
    weights: str = "minmax"
    rounding: str = "nearest"
    reconstruction: Reconstruction | None = None
    ends: str | None = None
    equalised: bool = False
    corrected: bool = False
