"""Measurements: latency with its rows, and instructions of an emulated core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

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
