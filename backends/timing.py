"""Time whole runs of an artefact on this host."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import numpy as np

from edgeq.spec import LatencyReport, OpLatency


def measure(
    call: Callable[[], object],
    rows: Callable[[], tuple[OpLatency, ...]],
    *,
    backend: str,
    versions: dict[str, str],
    threads: int,
    warmup: int,
    runs: int,
    method: str = "",
) -> LatencyReport:
    """Median, 10th and 90th percentile of `runs` calls after `warmup`, then `rows` by `method`.

    What the rows leave of the median is `unattributed_ms`; None where there are none.
    """
    median, p10, p90 = (float(p) for p in np.percentile(times(call, warmup, runs), (50, 10, 90)))
    found = rows()
    return LatencyReport(
        device=platform.processor() or platform.machine(),
        backend=backend,
        versions=versions,
        threads=threads,
        warmup=warmup,
        runs=runs,
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        rows=found,
        method=method,
        unattributed_ms=max(0.0, median - sum(row.ms for row in found)) if found else None,
    )


def times(call: Callable[[], object], warmup: int, runs: int) -> list[float]:
    """Milliseconds of each of `runs` calls after `warmup`."""
    for _ in range(warmup):
        call()
    spent = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        spent.append((time.perf_counter_ns() - start) / 1e6)
    return spent
