"""Core ML's own plan of a package: the processor that it prefers for each operator, and the share of the work it expects.

A plan is an estimate made before anything ran. Its shares become rows by multiplying them with the measured total.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeq.backends.coreml.package import coremltools
from edgeq.spec import OpLatency, OpPlacement

METHOD = "compute plan"
DEVICES = {
    "MLCPUComputeDevice": "CPU",
    "MLGPUComputeDevice": "GPU",
    "MLNeuralEngineComputeDevice": "Neural Engine",
}


@dataclass(frozen=True, slots=True)
class Planned:
    """One MIL operator of a plan. name: of its first output. device: preferred. share: of the work, 0 to 1; None: untold."""

    name: str
    device: str
    share: float | None


def rows_of(plan: Sequence[Planned], coverage: Sequence[OpPlacement], total_ms: float) -> tuple[OpLatency, ...]:
    """A row for each operator whose share is told, in the plan's order: its share of `total_ms`.

    Operators that the coverage does not know, as constants and what Core ML inserts, are `inserted` where they cost anything.
    Shares that add up to more than 1 are scaled down to it; what is left of 1 stays for the report to call unattributed.
    """
    known: Mapping[str, OpPlacement] = {row.name: row for row in coverage}
    told = [(p, p.share) for p in plan if p.share is not None and math.isfinite(p.share) and p.share >= 0]
    whole = max(1.0, math.fsum(share for _, share in told))
    rows = []
    for planned, share in told:
        place = known.get(planned.name)
        ms = total_ms * share / whole
        if place is not None:
            rows.append(OpLatency(planned.name, ms, place.layers, device=planned.device))
        elif ms > 0:
            rows.append(OpLatency(planned.name, ms, kind="inserted", device=planned.device))
    return tuple(rows)


def read(path: Path) -> list[Planned]:
    """The plan of a saved package, all compute units allowed; macOS only, empty where Core ML tells none."""
    ct = coremltools()
    compiled = ct.models.utils.compile_model(str(path))
    plan = ct.models.compute_plan.MLComputePlan.load_from_path(compiled, compute_units=ct.ComputeUnit.ALL)
    program = plan.model_structure.program
    if program is None:
        return []
    found = []
    for operation in program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        kind = type(usage.preferred_compute_device).__name__ if usage is not None else ""
        share = None if cost is None else float(cost.weight)
        found.append(Planned(operation.outputs[0].name if operation.outputs else "", DEVICES.get(kind, kind), share))
    return found
