"""Latency of a `.tflite` file on this host: in total, and per operator by the time each prefix of the graph takes."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import Tensor

from edgeq.backends.litert.flatbuffer import pack, schema
from edgeq.backends.litert.run import feed, interpreter
from edgeq.spec import LatencyReport, OpLatency


def profile(
    path: Path, inputs: Sequence[Tensor], *, threads: int = 1, warmup: int = 5, runs: int = 30
) -> LatencyReport:
    """Time `runs` invocations of LiteRT's default kernels (XNNPACK takes what it can) after `warmup`.

    A row is what one operator adds to the median time of the graph up to it, never below 0; its name is that of the
    operator's first output, as in the coverage table. The delegate may fuse across the end of a prefix.

    Raises:
        EdgeqError: see edgeq.backends.litert.run.interpreter.
    """
    engine = interpreter(path, threads=threads)
    feed(path, engine, inputs)
    totals = _times(engine.invoke, warmup, runs)
    median, p10, p90 = (float(np.percentile(totals, p)) for p in (50, 10, 90))
    rows = _prefixes(path, inputs, threads, warmup, runs)
    return LatencyReport(
        device=platform.processor() or platform.machine(),
        backend="litert",
        versions={"ai-edge-litert": version("ai-edge-litert")},
        threads=threads,
        warmup=warmup,
        runs=runs,
        median_ms=median,
        p10_ms=p10,
        p90_ms=p90,
        rows=rows,
        method="prefixes",
        unattributed_ms=max(0.0, median - sum(row.ms for row in rows)),
    )


def _prefixes(path: Path, inputs: Sequence[Tensor], threads: int, warmup: int, runs: int) -> tuple[OpLatency, ...]:
    data = path.read_bytes()
    model = schema().ModelT.InitFromPackedBuf(data, 0)
    model.signatureDefs = None  # they name the whole graph's outputs
    graph = model.subgraphs[0]
    operators = list(graph.operators)
    rows, before = [], 0.0
    for count, operator in enumerate(operators, 1):
        graph.operators, graph.outputs = operators[:count], operator.outputs
        engine = interpreter(path, threads=threads, data=pack(model))
        feed(path, engine, inputs)
        so_far = float(np.median(_times(engine.invoke, warmup, runs)))
        name = graph.tensors[int(operator.outputs[0])].name.decode()
        rows.append(OpLatency(name, max(0.0, so_far - before)))
        before = max(before, so_far)
    return tuple(rows)


def _times(call: Callable[[], object], warmup: int, runs: int) -> list[float]:
    """Milliseconds of each of `runs` calls after `warmup`."""
    for _ in range(warmup):
        call()
    spent = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        spent.append((time.perf_counter_ns() - start) / 1e6)
    return spent
