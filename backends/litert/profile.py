"""Latency of a `.tflite` file on this host: in total, and per operator by the time each prefix of the graph takes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import Tensor

from edgeq.backends.litert.flatbuffer import pack, schema
from edgeq.backends.litert.run import feed, interpreter
from edgeq.backends.timing import measure, times
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
    return measure(
        engine.invoke,
        lambda: _prefixes(path, inputs, threads, warmup, runs),
        backend="litert",
        versions={"ai-edge-litert": version("ai-edge-litert")},
        threads=threads,
        warmup=warmup,
        runs=runs,
        method="prefixes",
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
        so_far = float(np.median(times(engine.invoke, warmup, runs)))
        name = graph.tensors[int(operator.outputs[0])].name.decode()
        rows.append(OpLatency(name, max(0.0, so_far - before)))
        before = max(before, so_far)
    return tuple(rows)
