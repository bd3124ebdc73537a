"""Latency of a compiled library on this host: in total, and per kernel by the virtual machine's own instrument."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from edgeq.backends.timing import Event, alternate, overhead, report
from edgeq.backends.tvm.imported import tvm_package
from edgeq.backends.tvm.run import call, open_library, to_tvm
from edgeq.spec import Artifact, LatencyReport, OpLatency, RowKind

METHOD = "virtual machine instrument"
MACHINE = "vm."  # how the machine's own functions are called: memory, shapes, checks
BOOKKEEPING = "virtual machine"  # all of them as one event

Run = list[tuple[str, float]]  # (symbol, milliseconds) of every call in one inference


def profile(
    artifact: Artifact, inputs: Sequence[Tensor], *, threads: int = 1, warmup: int = 5, runs: int = 30
) -> LatencyReport:
    """Time `runs` calls after `warmup`, in turns with as many whose kernels are timed one by one.

    Raises:
        EdgeqError: see edgeq.backends.tvm.run.load.
    """
    machine = open_library(artifact.path, threads=threads)
    watched = open_library(artifact.path, threads=threads)
    calls: Run = []
    started = 0

    def instrument(function: Any, symbol: str, before: bool, result: Any, *args: Any) -> int:
        nonlocal started
        now = time.perf_counter_ns()
        if not before:
            calls.append((symbol, (now - started) / 1e6))
        started = time.perf_counter_ns()
        return 0

    watched.set_instrument(instrument)
    call(machine, inputs)  # says what is wrong with the inputs
    given = to_tvm(inputs)

    def trace() -> tuple[float, Run]:
        calls.clear()
        begun = time.perf_counter_ns()
        watched["main"](*given)
        return (time.perf_counter_ns() - begun) / 1e6, list(calls)

    spent, seen = alternate(lambda: machine["main"](*given), trace, warmup, runs)
    run_ms, whole = [run.ms for run in spent], [ms for ms, _ in seen]
    return report(
        run_ms,
        place(artifact, _events([run for _, run in seen], _cost(run_ms, whole, len(seen[0][1])))),
        backend="tvm",
        versions={"tvm": str(tvm_package().__version__)},
        threads=threads,
        warmup=warmup,
        method=METHOD,
        waited=[run.waited for run in spent] if threads == 1 else (),
    )


def _cost(untraced: Sequence[float], traced: Sequence[float], calls: int) -> float:
    """Milliseconds that the instrument puts into the time of one call.

    It is called before and after, each time with all arguments handed to Python, and what happens before lies outside of the
    time: half of what tracing adds. By the lower quartiles, which other programs disturb least.
    """
    quarters = [float(np.percentile(ms, 25)) for ms in (untraced, traced)]
    return max(0.0, quarters[1] - quarters[0]) / (2 * max(calls, 1))


def _events(runs: Sequence[Run], cost: float) -> list[Event]:
    """Runs as events in the order of their calls, less `cost` each; all of the machine's own functions are one, the last."""
    events, own = [], [0.0] * len(runs)
    for calls in zip(*runs, strict=True):
        symbol, ms = calls[0][0], [max(0.0, ms - cost) for _, ms in calls]
        if symbol.startswith(MACHINE):
            own = [before + more for before, more in zip(own, ms, strict=True)]
        else:
            events.append(Event(symbol, "kernel", tuple(ms)))
    return [*events, Event(BOOKKEEPING, "runtime", tuple(own))]


def place(artifact: Artifact, events: Sequence[Event]) -> list[OpLatency]:
    """Events of a traced run as rows, one for each call of a kernel, with all its layers.

    Calls and coverage rows stand in the same order. Kernels that convert at the edge of the integers stand in no coverage,
    and what only changes a shape is never called.
    """
    coverage, at = artifact.coverage, 0
    rows = []
    for event in (e for e in events if e.kind == "kernel"):
        here = next((i for i in range(at, len(coverage)) if coverage[i].name == event.name), None)
        kind: RowKind = "inserted" if here is None else "operator"
        rows.append(OpLatency(event.name, 0.0, () if here is None else coverage[here].layers, kind, event.ms))
        at = at if here is None else here + 1
    return rows + overhead("virtual machine overhead", [e for e in events if e.name == BOOKKEEPING], ())
