"""Latency of a compiled library on this host: in total, and per kernel by the virtual machine's own instrument."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from edgeq.backends.timing import measure
from edgeq.backends.tvm.lower import tvm_package
from edgeq.backends.tvm.run import call, open_library
from edgeq.spec import LatencyReport, OpLatency


def profile(
    path: Path, inputs: Sequence[Tensor], *, threads: int = 1, warmup: int = 5, runs: int = 30
) -> LatencyReport:
    """Time `runs` calls after `warmup`, then the kernels one by one in as many calls of their own.

    Raises:
        EdgeqError: see edgeq.backends.tvm.run.load.
    """
    machine = open_library(path, threads=threads)
    return measure(
        lambda: call(machine, inputs),
        lambda: _kernels(machine, inputs, runs),
        backend="tvm",
        versions={"tvm": str(tvm_package().__version__)},
        threads=threads,
        warmup=warmup,
        runs=runs,
        method="virtual machine instrument",
    )


def _kernels(machine: Any, inputs: Sequence[Tensor], runs: int) -> tuple[OpLatency, ...]:
    """Median time of every kernel, in the order of their calls; the machine's own bookkeeping left out."""
    layers: dict[str, list[str]] = json.loads(bytes(from_dlpack(machine["layers"]()).tolist()))
    spent: dict[str, list[float]] = defaultdict(list)
    started = 0

    def instrument(function: Any, symbol: str, before: bool, result: Any, *args: Any) -> int:
        nonlocal started
        if before:
            started = time.perf_counter_ns()
        elif not symbol.startswith("vm."):
            spent[symbol].append((time.perf_counter_ns() - started) / 1e6)
        return 0

    machine.set_instrument(instrument)
    for _ in range(runs):
        call(machine, inputs)
    return tuple(
        OpLatency(name, float(np.median(times)) * (len(times) // runs), tuple(layers.get(name, ())))
        for name, times in spent.items()
        if len(times) >= runs
    )
