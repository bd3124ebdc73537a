"""Operator kinds: one row for each says what all of edgeq has to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Role = Literal["layer", "product", "arithmetic", "pool", "clip", "curve", "normal", "move", "pick", "join"]


@dataclass(frozen=True, slots=True)
class Weights:
    """Where an operator with weights has them: arguments of the weight and of the bias; the weight's axis of output channels, and
    the output's.
    """

    weight: int
    bias: int
    axis: int
    out_axis: int


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of operators.

    role: `layer` has weights; `product` is one of two activations; `arithmetic` joins two tensors value by value; `pool` makes
        one value of several; `clip` is applied as bounds behind a kernel that fuses it; `curve` makes of each value another;
        `normal` is softmax; `move` gives its input's values in other places, `pick` those that a table names, `join` those of
        several inputs.
    keeps_grid: what it gives are values that it got: with the same scale and zero point, nothing is left to round.
    enters: worth a quantize of its own in front of it, where its input is computed in float.
    inputs: leading arguments that are activations; None: a list of them is the first.
    """

    name: str
    role: Role
    keeps_grid: bool = False
    enters: bool = False
    inputs: int | None = 1
    weights: Weights | None = None


_LAYER: Final = Weights(1, 2, 0, 1)
KINDS: Final[dict[str, Kind]] = {
    row.name: row
    for row in (
        Kind("conv1d", "layer", enters=True, weights=_LAYER),
        Kind("conv2d", "layer", enters=True, weights=_LAYER),
        Kind("depthwise_conv2d", "layer", enters=True, weights=_LAYER),
        Kind("conv_transpose2d", "layer", enters=True, weights=Weights(1, 2, 1, 1)),
        Kind("linear", "layer", enters=True, weights=Weights(1, 2, 0, -1)),
        Kind("matmul", "product", enters=True, inputs=2),
        Kind("add", "arithmetic", inputs=2),
        Kind("sub", "arithmetic", inputs=2),
        Kind("mul", "arithmetic", inputs=2),
        Kind("mean", "pool"),
        Kind("avg_pool2d", "pool"),
        Kind("max_pool2d", "pool", keeps_grid=True),
        Kind("relu", "clip"),
        Kind("relu6", "clip"),
        Kind("clamp", "clip"),
        Kind("sigmoid", "curve"),
        Kind("tanh", "curve"),
        Kind("curve", "curve"),  # any other, of one operator or several (edgeq.graph.curves)
        Kind("softmax", "normal", enters=True),
        Kind("reshape", "move", keeps_grid=True),
        Kind("permute", "move", keeps_grid=True),
        Kind("slice", "move", keeps_grid=True),
        Kind("pad", "move", keeps_grid=True),
        Kind("upsample_nearest", "move", keeps_grid=True),
        Kind("gather", "pick", keeps_grid=True),
        Kind("cat", "join", keeps_grid=True, inputs=None),
        Kind("requantize", "arithmetic"),  # no operator of a network: the same values with other numbers
    )
}


def weights_of(kind: str | None) -> Weights:
    """Where operators of `kind`, a layer's, have their weights."""
    found = KINDS[kind or ""].weights
    assert found is not None, f"{kind} has no weights"
    return found


def role_of(kind: str | None) -> Role | None:
    """The role of operators of `kind`."""
    return None if kind is None else KINDS[kind].role


def named(*roles: Role) -> tuple[str, ...]:
    """The kinds of these roles, in the table's order."""
    return tuple(kind for kind, row in KINDS.items() if row.role in roles)
