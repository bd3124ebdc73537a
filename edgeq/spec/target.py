"""Targets: what a runtime's kernels compute as integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["integer", "eligible", "float island"]


@dataclass(frozen=True, slots=True)
class OpSupport:
    """One row of a target's table: an operator kind its kernels compute from integers to integers.

    kind: edgeq's name of the operator (`conv2d`, `add`, ...; see edgeq.graph.ops).
    status: `integer` when the kernel sums in integers on every device, `eligible` when the device decides.
    precisions: names the kernel takes; anything else is refused.
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
    precisions: tuple[str, ...] = ("w8a8",)
    fused: tuple[str, ...] = ()
    shared_scale: bool = False
    fixed_output: tuple[float, int] | None = None
    constraint: str = ""
    limits: tuple[str, ...] = ()
    ratio: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """What a runtime's kernels compute as integers, and how they round.

    arithmetic: the requantisation rule of its default kernels, a module name in edgeq.graph.arithmetic.
    kernels: (name `load` takes as `kernels`, arithmetic) of each kernel set, where the runtime has several.
    arm: (arithmetic, that of the same kernels on 64-bit Arm) where the two differ.
    weight_only: kinds whose weights may stay int8 while activations are float.
    floats: float precisions the runtime can store and compute.
    """

    name: str
    runtimes: tuple[str, ...]
    arithmetic: str
    ops: tuple[OpSupport, ...]
    weight_only: tuple[str, ...] = ()
    floats: tuple[str, ...] = ("fp32",)
    kernels: tuple[tuple[str, str], ...] = ()
    arm: tuple[tuple[str, str], ...] = ()
    any_precision: bool = False  # the simulated target: every bit width, no artefact

    def support(self, kind: str) -> OpSupport | None:
        """The row of operator `kind`, or None where this target leaves it in float."""
        return next((row for row in self.ops if row.kind == kind), None)

    def kernel_sets(self, abi: str) -> tuple[tuple[str, str], ...]:
        """(kernels, arithmetic) of each kernel set on a machine with `abi`; a single set is called ""."""
        own = dict(self.arm) if abi.startswith(("aarch64", "arm64")) else {}
        return tuple((name, own.get(rule, rule)) for name, rule in self.kernels or (("", self.arithmetic),))
