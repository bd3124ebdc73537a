"""Latency of a .pte on this host: in total with tracing off, then per operator from an ETDump."""

from __future__ import annotations

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeq.backends.executorch.pte import PteOp, read_pte
from edgeq.backends.executorch.run import load, open_module
from edgeq.backends.timing import measure
from edgeq.graph.quiet import quiet
from edgeq.spec import LatencyReport, OpLatency

# XNNPACK's type in the file → how the runtime's operator name begins, where the two differ
RUNTIME_NAMES = {
    "Conv2d": ("Convolution",),
    "DepthwiseConv2d": ("Convolution",),
    "ConvTranspose2d": ("Deconvolution",),
    "GlobalAvgPooling2d": ("Mean", "Global Average"),
    "AvgPooling2d": ("Average Pooling",),
    "StaticReshape": ("Static Reshape", "Copy"),
    "StaticTranspose": ("Transpose",),
    "StaticConstantPad": ("Constant Pad", "Static Constant Pad"),
    "StaticSlice": ("Slice",),
}


def profile(
    path: Path, inputs: Sequence[Tensor], *, threads: int = 1, warmup: int = 5, runs: int = 30
) -> LatencyReport:
    """Time `runs` calls after `warmup`, then as many with tracing on for the rows.

    Rows are named as the rows of the artefact's coverage table; layout and type changes in between have rows of their
    own. XNNPACK counts whole microseconds, so a row is the mean of the middle half of the runs. What the rows leave of
    the total (the delegate's and the method's overhead) is `unattributed_ms`.

    Raises:
        EdgeqError: see edgeq.backends.executorch.run.load.
    """
    predict = load(path, threads=threads)
    return measure(
        lambda: predict(inputs),
        lambda: _rows(path, inputs, threads, runs),
        backend="executorch",
        versions={"executorch": version("executorch")},
        threads=threads,
        warmup=warmup,
        runs=runs,
        method="etdump",
    )


def _rows(path: Path, inputs: Sequence[Tensor], threads: int, runs: int) -> tuple[OpLatency, ...]:
    module = open_module(path, threads=threads, trace=True)
    with tempfile.TemporaryDirectory() as folder, quiet():
        from executorch.devtools import Inspector

        for _ in range(runs):
            module.forward([x.detach().contiguous() for x in inputs])
        dump = Path(folder) / "trace.etdp"
        module.write_etdump_result_to_file(str(dump), str(Path(folder) / "debug.bin"))
        blocks = Inspector(etdump_path=str(dump)).event_blocks
        ops = read_pte(path.read_bytes())
    measured: dict[int, list[Any]] = defaultdict(list)
    kernels: dict[int, float] = {}
    for event in (e for block in blocks if block.name == "Execute" for e in block.events):
        if event.is_delegated_op:
            measured[event._instruction_id].append(event)
        elif event.name == "OPERATOR_CALL":
            kernels[event._instruction_id] = _typical(event.perf_data.raw)
    rows = []
    for instruction in dict.fromkeys(op.instruction for op in ops):
        here = [op for op in ops if op.instruction == instruction]
        if here[0].delegated:
            rows += _match(here, measured[instruction])
        elif instruction in kernels:
            rows.append(OpLatency(here[0].name, kernels[instruction]))
    return tuple(rows)


def _typical(times: Sequence[float]) -> float:
    """Mean of the middle half: as steady as a median, finer than the clock's microsecond."""
    quarter = len(times) // 4
    return statistics.fmean(sorted(times)[quarter : len(times) - quarter])


def _match(ops: Sequence[PteOp], events: Sequence[Any]) -> list[OpLatency]:
    """XNNPACK runs a delegate's operators in their order in the file; what it added keeps its own name."""
    rows = []
    waiting = list(ops)
    for event in events:
        ms = _typical(event.perf_data.raw)
        position = 0 if len(events) == len(ops) else _find(waiting, event.name)
        if position is None:
            rows.append(OpLatency(f"{ops[0].instruction} {event.name}", ms))
        else:
            rows.append(OpLatency(waiting[position].name, ms))
            del waiting[: position + 1]
    return rows


def _find(ops: Sequence[PteOp], runtime_name: str) -> int | None:
    plain = runtime_name.replace(" ", "").lower()
    for position, op in enumerate(ops):
        starts = RUNTIME_NAMES.get(op.type, (op.type,))
        if any(plain.startswith(s.replace(" ", "").lower()) for s in starts):
            return position
    return None
