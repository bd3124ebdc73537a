"""The vocabulary: plain frozen data that every stage passes on. Imports neither torch nor any runtime."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# what long work reports: stage, steps done, steps in total where known; `<stage>: <result>` ends a stage with what came of it
Progress = Callable[[str, int, int | None], None]


class EdgeqError(Exception):
    """A mistake or a limit the user can act on: one sentence naming what, where and what to do."""


class EdgeqWarning(UserWarning):
    """What a user should hear although the work goes on: one sentence; the command line shows it on stderr."""


# ---------------------------------------------------------------- precision


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one tensor is quantized: signed integers of `bits` bits, affine or symmetric, per tensor or per channel."""

    bits: int
    symmetric: bool
    per_channel: bool

    @property
    def qmin(self) -> int:
        """Smallest stored integer; symmetric grids leave out -2^(bits-1), as the runtimes' weight kernels do."""
        return -(1 << (self.bits - 1)) + (1 if self.symmetric else 0)

    @property
    def qmax(self) -> int:
        """Largest stored integer."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True, slots=True)
class Precision:
    """What a layer computes in: a weight spec and an activation spec; None keeps that side in `dtype`."""

    name: str
    weight: QuantSpec | None = None
    activation: QuantSpec | None = None
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
    weight = QuantSpec(int(match[1]), symmetric=True, per_channel=True)
    activation = QuantSpec(int(match[2]), symmetric=False, per_channel=False) if match[2] else None
    return Precision(text, weight, activation)


# ---------------------------------------------------------------- targets


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


# ---------------------------------------------------------------- plans and resolved numbers


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """Intent: which layer in which precision. Saved as plan.json; a person may edit it and feed it back.

    layers: layer key (module path, operator and ordinal, `features.3.conv/conv2d`) to precision name.
    """

    target: str
    recipe: str
    layers: dict[str, str]


@dataclass(frozen=True, slots=True)
class QParams:
    """Resolved numbers of one tensor: real = scale * (q - zero_point), per tensor or along `axis`."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    qmin: int = -128
    qmax: int = 127
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and dtype of a program's input or output, with its scale where it is quantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    qparams: QParams | None = None


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


# ---------------------------------------------------------------- artefacts and measurements


@dataclass(frozen=True, slots=True)
class OpPlacement:
    """One row of a coverage table: what a runtime does with an operator of the artefact, and why.

    name: the operator's name inside the artefact. layers: the layer keys it computes, where known.
    inserted: a converter put it between layers, for a layout or a type; its layers are those beside it.
    """

    name: str
    kind: str
    status: Status
    reason: str = ""
    layers: tuple[str, ...] = ()
    inserted: bool = False


@dataclass(frozen=True, slots=True)
class Artifact:
    """A lowered program on disk: `path` is a file, or a folder for an .mlpackage.

    inputs, outputs: as the file has them, where they may be of other types than the program's; set by `lower` alone.
    """

    backend: str
    path: Path
    coverage: tuple[OpPlacement, ...] = ()
    notes: tuple[str, ...] = ()
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()


# What a row of a latency report is: an operator of the artefact; one that the runtime put between them, for a layout or a
# type; what a delegate, or the runtime itself, takes beside its operators; what no row accounts for.
RowKind = Literal["operator", "inserted", "overhead", "unattributed"]


@dataclass(frozen=True, slots=True)
class OpLatency:
    """One row of a latency report; milliseconds.

    name: as in the coverage table where it is one of its operators, else in the runtime's words.
    layers: every layer it computes, fused ones too. run_ms: each traced run, as measured; empty where there are none.
    device: the processor that the runtime prefers for it, where it plans that (Core ML).
    """

    name: str
    ms: float
    layers: tuple[str, ...] = ()
    kind: RowKind = "operator"
    run_ms: tuple[float, ...] = ()
    device: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, 10th and 90th percentile over `runs` runs."""

    median: float
    p10: float
    p90: float
    runs: int


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """Measured latency of one artefact on one device; milliseconds.

    total_ms: whole inferences after `warmup`, with profiling off; run_ms: each of them.
    rows: they add up to `total_ms.median`; overhead and what is unattributed are rows of their own. Empty where the
        runtime tells no more than the total.
    method: how rows were measured (`etdump`, `litert profiler`, `prefixes`, ...); empty when there are none.
    row_scale: below 1 where the traced runs took longer than the untraced: every row was multiplied by it.
    unattributed_ms: of the row of that kind; None without rows.
    measurement: its number among the kept measurements; None where it was not kept.
    earlier_ms: medians of the latest profiles of the same file, device and threads that were kept before, the latest first.
    """

    device: str
    backend: str
    versions: dict[str, str]
    threads: int
    warmup: int
    total_ms: Spread
    run_ms: tuple[float, ...] = ()
    rows: tuple[OpLatency, ...] = field(default=())
    method: str = ""
    row_scale: float = 1.0
    unattributed_ms: float | None = None
    measurement: int | None = None
    earlier_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class InstructionReport:
    """Instructions of one inference on an emulated core. There is no time in it, and none follows from it."""

    device: str
    backend: str
    versions: dict[str, str]
    threads: int
    instructions: int
    measurement: int | None = None


# ---------------------------------------------------------------- devices


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device in its own words.

    abi: which binaries it runs, architecture and system: `x86_64-linux`, `aarch64-linux`, `aarch64-android`, `hexagon`,
        `arm64-apple`. features: vector features that matter for int8, by their names in /proc/cpuinfo.
    governor, temperature_c: of the first core and the hottest zone, where readable.
    emulated: it computes what the real core would, and its times mean nothing.
    """

    name: str
    model: str
    abi: str
    cores: int
    os: str
    features: tuple[str, ...] = ()
    governor: str | None = None
    temperature_c: float | None = None
    emulated: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """How one artefact is run on a device with some abi: what a backend knows and a device does not.

    files: name on the device → file here; the artefact, the runner and its libraries. command: program and fixed
    arguments, names relative to the device's folder; what a run wants (inputs, threads, runs) is added to it.
    environment: variables of the command.
    """

    files: dict[str, Path]
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
