"""Targets: what a runtime's kernels compute as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeq.spec.grid import Grid
from edgeq.spec.precision import Precision, named, precision

Status = Literal["integer", "table", "eligible", "float island"]
Side = Grid | Literal["any", "any per channel"] | None  # None: no weights, or floats
Pair = tuple[Side, Side]  # grids of weights and of activations

W8A8 = precision("w8a8")
INTEGERS: tuple[Pair, ...] = ((None, W8A8.activation),)  # what a kernel without weights takes
LAYERS: tuple[Pair, ...] = ((W8A8.weight, W8A8.activation),)
WEIGHTS: tuple[Pair, ...] = ((W8A8.weight, None),)  # of an operator that computes in float
ANY: tuple[Pair, ...] = ((None, "any"),)
ANY_LAYERS: tuple[Pair, ...] = (("any per channel", "any"), ("any", None))


@dataclass(frozen=True, slots=True)
class OpSupport:
    """One row of a target's table: an operator kind its kernels compute from integers to integers.

    kind: edgeq's name of the operator (`conv2d`, `add`, ...; see edgeq.graph.kinds).
    status: `integer` when the kernel sums in integers on every device, `eligible` when the device decides, `table` where a
        function is computed in float between two integers, so that its 256 inputs tell all of it; of pairs whose
        activations are no integers it is a float island, whose weights alone are stored as integers.
    pairs: grids of weights and activations that the kernel takes together; anything else is refused.
    fused: activations (`relu`, `relu6`, `clamp`) the kernel applies for free as clip bounds.
    shared_scale: inputs and output must have one scale and zero point (concat, pooling, reshape).
    fixed_output: (scale, zero point) the kernel insists on (LiteRT's softmax and logistic).
    constraint: a sentence about shapes or layouts the kernel demands, shown in the coverage table; checked by `limits`.
    ratio: open interval in which (product of input and weight scales) / output scale must lie, add and sub each input's
        own; calibration widens a scale where it does not.
    limits: names of the shape checks in edgeq.graph.limits that enforce `constraint`.
    """

    kind: str
    status: Status = "integer"
    pairs: tuple[Pair, ...] = INTEGERS
    fused: tuple[str, ...] = ()
    shared_scale: bool = False
    fixed_output: tuple[float, int] | None = None
    constraint: str = ""
    limits: tuple[str, ...] = ()
    ratio: tuple[float, float] | None = None

    def takes(self, wanted: Precision) -> Status | None:
        """How the kernel computes in a precision that quantizes something; None: it does not."""
        for weight, activation in self.pairs:
            without = weight is None and activation is not None  # a kernel that has no weights to ask about
            if _holds(activation, wanted.activation) and (without or _holds(weight, wanted.weight)):
                return self.status if activation is not None else "float island"
        return None

    def computes(self, *, integers: bool) -> bool:
        """Whether there is any pair whose activations are integers, or floats."""
        return any((activation is not None) is integers for _, activation in self.pairs)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names of the precisions whose activations are integers, for people to choose from."""
        return tuple(named(w if isinstance(w, Grid) else W8A8.weight, a) for w, a in self.pairs if isinstance(a, Grid))


def _holds(side: Side, wanted: Grid | None) -> bool:
    """Whether a side of a pair is what is wanted there."""
    if side is None or wanted is None or isinstance(side, Grid):
        return side == wanted
    return side == "any" or (wanted.tile.over == "channel" and wanted.table is None)


@dataclass(frozen=True, slots=True)
class Target:
    """What a runtime's kernels compute as integers, and how they round.

    arithmetic: the requantisation rule of its default kernels, a module name in edgeq.graph.arithmetic.
    kernels: (name `load` takes as `kernels`, arithmetic) of each kernel set, where the runtime has several.
    arm: (arithmetic, that of the same kernels on 64-bit Arm) where the two differ.
    floats: float precisions the runtime can store and compute.
    """

    name: str
    runtimes: tuple[str, ...]
    arithmetic: str
    ops: tuple[OpSupport, ...]
    floats: tuple[str, ...] = ("fp32",)
    kernels: tuple[tuple[str, str], ...] = ()
    arm: tuple[tuple[str, str], ...] = ()

    def support(self, kind: str | None) -> OpSupport | None:
        """The row of operator `kind`, or None where this target leaves it in float."""
        return next((row for row in self.ops if row.kind == kind), None)

    def takes(self, kind: str | None, wanted: Precision) -> Status | None:
        """How the target computes an operator of `kind` in a precision; None: not at all. Who annotates asks, and who exports."""
        if wanted.weight is None and wanted.activation is None:
            return "float island" if wanted.name in self.floats else None
        row = self.support(kind)
        return None if row is None else row.takes(wanted)

    @property
    def weight_only(self) -> tuple[str, ...]:
        """Kinds whose weights may be integers while activations are float."""
        return tuple(row.kind for row in self.ops if row.computes(integers=False))

    def kernel_sets(self, abi: str) -> tuple[tuple[str, str], ...]:
        """(kernels, arithmetic) of each kernel set on a machine with `abi`; a single set is called ""."""
        own = dict(self.arm) if abi.startswith(("aarch64", "arm64")) else {}
        return tuple((name, own.get(rule, rule)) for name, rule in self.kernels or (("", self.arithmetic),))
