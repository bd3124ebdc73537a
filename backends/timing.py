"""From times of whole runs and a profiler's events to a latency report whose rows add up to the total."""

from __future__ import annotations

import dataclasses
import math
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from edgeq.spec import EdgeqError, LatencyReport, OpLatency, Spread

Seen = TypeVar("Seen")

WAITING = "waiting for a core"
LEAST_WAITING = 0.005  # of the total, from which on it is a row
BLOCK = 5  # runs measured in a row before the other kind has its turn
PERIOD_S = 0.2  # from one block's begin to the next one's, at least: what else runs comes and goes in tenths of seconds
EventKind = Literal["kernel", "delegated", "delegate", "runtime"]


@dataclass(frozen=True, slots=True)
class Event:
    """What a runtime's profiler says of one step, in order of execution.

    kind: `kernel`, an operator that the runtime runs itself; `delegated`, an operator inside a delegate; `delegate`, one
        whole call of a delegate; `runtime`, a whole inference in the runtime's own measure (anything else it times too).
    instruction: of the program, shared by a delegate's call and what happens inside it.
    ms: one number for each traced run.
    """

    name: str
    kind: EventKind
    ms: tuple[float, ...]
    instruction: int | None = None


def events_of(result: Mapping[str, Any]) -> tuple[Event, ...]:
    """The events of a runner's result.json.

    Raises:
        EdgeqError: an event has another number of times than there were traced runs, or no name or kind.
    """
    try:
        events = tuple(
            Event(str(e["name"]), e["kind"], tuple(float(ms) for ms in e["ms"]), e.get("instruction"))
            for e in result.get("events", ())
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EdgeqError(
            f"the runner's result is not what this version reads ({error!r}): build the runner again"
        ) from error
    if len({len(e.ms) for e in events}) > 1:
        raise EdgeqError("the runner's events have different numbers of runs: its result is damaged, measure again")
    return events


class Run(NamedTuple):
    """Milliseconds of one call, and how many of them the calling thread was on no core."""

    ms: float
    waited: float


def watched(call: Callable[[], object], warmup: int, runs: int) -> list[Run]:
    """Each of `runs` calls after `warmup`."""
    for _ in range(warmup):
        call()
    spent = []
    for _ in range(runs):
        worked, start = time.thread_time_ns(), time.perf_counter_ns()
        call()
        ms = (time.perf_counter_ns() - start) / 1e6
        worked = time.thread_time_ns() - worked
        spent.append(Run(ms, max(0.0, ms - worked / 1e6)))
    return spent


def times(call: Callable[[], object], warmup: int, runs: int) -> list[float]:
    """Milliseconds of each of `runs` calls after `warmup`."""
    return [run.ms for run in watched(call, warmup, runs)]


def alternate(
    call: Callable[[], object], traced: Callable[[], Seen], warmup: int, runs: int
) -> tuple[list[Run], list[Seen]]:
    """Each of `runs` calls after `warmup`, and what as many traced ones saw.

    They take turns in blocks, so that both see the same machine: its clock and what else runs on it drift. The first run
    of a block is not measured, as the caches hold the other kind's weights. Between blocks it waits, as a small network's
    runs are over in milliseconds: they would all fall into one disturbance or all beside it, and know nothing of it.
    """
    for _ in range(warmup):
        call()
    traced()  # runtimes pack weights in the first run
    spent: list[Run] = []
    seen: list[Seen] = []
    while len(spent) < runs:
        begun = time.monotonic()
        count = min(BLOCK, runs - len(spent))
        spent += watched(call, 1, count)
        traced()
        seen += [traced() for _ in range(count)]
        if len(spent) < runs:
            time.sleep(max(0.0, begun + PERIOD_S - time.monotonic()))
    return spent, seen


def report(
    run_ms: Sequence[float],
    rows: Sequence[OpLatency] = (),
    *,
    backend: str,
    versions: dict[str, str],
    threads: int,
    warmup: int,
    method: str = "",
    device: str = "",
    waited: Sequence[float] = (),
) -> LatencyReport:
    """Total over `run_ms` (untraced runs, milliseconds), and `rows` settled so that they add up to its median.

    waited: of each run, how long the thread that computes it was on no core; known for one thread only. What of the median
    goes back to it is a row, so that a busy machine's time is nobody else's.
    """
    median, p10, p90 = (float(p) for p in np.percentile(run_ms, (50, 10, 90)))
    worked = float(np.median(np.subtract(run_ms, waited))) if waited else median
    lost = max(0.0, median - worked)
    waiting = [OpLatency(WAITING, lost, kind="overhead")] if lost >= LEAST_WAITING * median else []
    settled, scale = settle(median, rows, waiting) if rows else ((), 1.0)
    return LatencyReport(
        device=device or platform.processor() or platform.machine(),
        backend=backend,
        versions=versions,
        threads=threads,
        warmup=warmup,
        total_ms=Spread(median, p10, p90, len(run_ms)),
        run_ms=tuple(run_ms),
        rows=settled,
        method=method if rows else "",
        row_scale=scale,
        unattributed_ms=settled[-1].ms if settled else None,
    )


def settle(
    total: float, rows: Sequence[OpLatency], fixed: Sequence[OpLatency] = ()
) -> tuple[tuple[OpLatency, ...], float]:
    """`rows` with their times, `fixed`, then what both leave of `total` as a row; and the scale that `rows` were given.

    A row's time is the mean of the middle half of its traced runs: as steady as a median, finer than a profiler's clock of
    whole microseconds. So what disturbs a few runs is in no layer's row; where it disturbs most of them it is in the total,
    and unattributed. Where the rows exceed the total, because tracing takes time itself, all are scaled down alike. A row
    without runs keeps its time.
    """
    times = [max(0.0, _typical(row.run_ms)) if row.run_ms else row.ms for row in rows]
    spent, there = math.fsum(times), total - math.fsum(row.ms for row in fixed)
    scale = min(1.0, there / spent) if spent > 0 else 1.0
    settled = [dataclasses.replace(row, ms=ms * scale) for row, ms in zip(rows, times, strict=True)] + [*fixed]
    left = max(0.0, total - math.fsum(row.ms for row in settled))
    return (*settled, OpLatency("unattributed", left, kind="unattributed")), scale


def _typical(values: Sequence[float]) -> float:
    quarter = len(values) // 4
    middle = sorted(values)[quarter : len(values) - quarter]
    return math.fsum(middle) / len(middle)


def overhead(name: str, whole: Iterable[Event], parts: Iterable[Event]) -> list[OpLatency]:
    """A row of what `whole` takes beside `parts`, run by run; none where nothing measured a whole."""
    whole, parts = list(whole), list(parts)
    if not whole:
        return []
    left = [math.fsum(ms) for ms in zip(*(e.ms for e in whole), strict=True)]
    for event in parts:
        left = [ms - inner for ms, inner in zip(left, event.ms, strict=True)]
    return [OpLatency(name, 0.0, kind="overhead", run_ms=tuple(left))]
