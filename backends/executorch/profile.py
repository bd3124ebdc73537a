"""Latency of a .pte on this host: in total with tracing off, and per operator from an ETDump."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from edgeq.backends.alignment import align
from edgeq.backends.executorch.pte import PteOp, read_pte
from edgeq.backends.executorch.run import open_module
from edgeq.backends.timing import Event, EventKind, alternate, overhead, report
from edgeq.graph.quiet import quiet
from edgeq.spec import Artifact, LatencyReport, OpLatency, RowKind

METHOD = "etdump"
WHOLE = "Method::execute"  # ExecuTorch's name of a whole inference
KINDS: dict[str, EventKind] = {"OPERATOR_CALL": "kernel", "DELEGATE_CALL": "delegate"}


def profile(
    artifact: Artifact, inputs: Sequence[Tensor], *, threads: int = 1, warmup: int = 5, runs: int = 30
) -> LatencyReport:
    """Time `runs` calls after `warmup`, in turns with as many that are traced.

    Raises:
        EdgeqError: see edgeq.backends.executorch.run.load.
    """
    given = [x.detach().contiguous() for x in inputs]
    module = open_module(artifact.path, threads=threads)
    traced = open_module(artifact.path, threads=threads, trace=True)
    calls = iter(range(2**31))

    def trace() -> int:
        traced.forward(given)
        return next(calls)

    spent, kept = alternate(lambda: module.forward(given), trace, warmup, runs)
    return report(
        [run.ms for run in spent],
        place(artifact, _events(traced, kept)),
        backend="executorch",
        versions={"executorch": version("executorch")},
        threads=threads,
        warmup=warmup,
        method=METHOD,
        waited=[run.waited for run in spent] if threads == 1 else (),
    )


def _events(module: object, kept: Sequence[int]) -> list[Event]:
    """The ETDump of a traced module: events in order, with the times of the calls in `kept`."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        from executorch.devtools import Inspector

        dump = Path(folder) / "trace.etdp"
        module.write_etdump_result_to_file(str(dump), str(Path(folder) / "debug.bin"))  # type: ignore[attr-defined] # untyped
        blocks = Inspector(etdump_path=str(dump)).event_blocks
    events = []
    for event in (e for block in blocks if block.name == "Execute" for e in block.events):
        kind = "delegated" if event.is_delegated_op else KINDS.get(event.name, "runtime")
        ms = tuple(event.perf_data.raw[i] for i in kept)
        events.append(Event(event.name, kind, ms, None if kind == "runtime" else event._instruction_id))
    return events


def place(artifact: Artifact, events: Sequence[Event]) -> list[OpLatency]:
    """Events of a traced run as rows: each operator under its name in the coverage table, with all its layers.

    XNNPACK counts whole microseconds. What its calls take beside their operators is a row, and what the method takes
    beside its instructions is another.
    """
    ops: dict[int, list[PteOp]] = defaultdict(list)
    for op in read_pte(artifact.path.read_bytes()):
        ops[op.instruction].append(op)
    layers = {row.name: row.layers for row in artifact.coverage if not row.inserted}
    delegated: dict[int, list[Event]] = defaultdict(list)
    rows: list[tuple[int, OpLatency]] = []
    for event in events:
        at = -1 if event.instruction is None else event.instruction
        if event.kind == "delegated":
            delegated[at].append(event)
        elif event.kind == "kernel" and ops[at]:
            name = ops[at][0].name
            rows.append((at, OpLatency(name, 0.0, layers.get(name, ()), run_ms=event.ms)))
    for at, inner in delegated.items():
        rows += [(at, row) for row in _delegated(ops[at], inner, layers)]
    kernels = [e for e in events if e.kind == "kernel"]
    calls = [e for e in events if e.kind == "delegate"]
    whole = [e for e in events if e.name == WHOLE]
    return [
        *(row for _, row in sorted(rows, key=lambda pair: pair[0])),
        *overhead("delegate overhead", calls, [e for inner in delegated.values() for e in inner]),
        *overhead("runtime overhead", whole, kernels + calls),
    ]


def _delegated(ops: Sequence[PteOp], events: Sequence[Event], layers: dict[str, tuple[str, ...]]) -> list[OpLatency]:
    """Rows of one delegate. A change of shape that stands in no coverage table belongs to the operator behind it."""
    owned: list[tuple[str, ...]] = [()] * len(ops)
    behind: tuple[str, ...] = ()
    for i in reversed(range(len(ops))):
        if ops[i].name in layers:
            behind = layers[ops[i].name]
        owned[i] = () if ops[i].inserted else behind
    rows = []
    for event, at in zip(events, align([op.type for op in ops], [e.name for e in events]), strict=True):
        found = tuple(dict.fromkeys(key for i in at for key in owned[i]))
        kind: RowKind = "operator" if any(not ops[i].inserted for i in at) else "inserted"
        name = ops[at[0]].name if at else f"{event.instruction} {event.name}"
        rows.append(OpLatency(name, 0.0, found, kind, event.ms))
    return rows
