"""Run a compiled library through a session with a TVM RPC server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def run(
    session: Any, name: str, batches: Sequence[Sequence[Tensor]], threads: int, warmup: int, runs: int
) -> tuple[tuple[tuple[Tensor, ...], ...], list[float]]:
    """Outputs of each batch, and milliseconds of `runs` runs of the first batch after `warmup`, as the server times them.

    session: of tvm.rpc, whose server holds the library as `name`. Raises whatever TVM raises.
    """
    import tvm

    device = session.cpu(0)
    machine = tvm.relax.VirtualMachine(session.load_module(name), device)
    session.get_function("runtime.config_threadpool")(1, threads)
    found = []
    for batch in batches:
        _set(machine, device, batch)
        machine.invoke_stateful("main")
        results = machine.get_outputs("main")
        listed = results if isinstance(results, (list, tuple)) else [results]
        found.append(tuple(torch.from_numpy(r.numpy().copy()) for r in listed))
    spent: list[float] = []
    if runs:
        _set(machine, device, batches[0])
        for _ in range(warmup):
            machine.invoke_stateful("main")
        timer = machine.time_evaluator("invoke_stateful", device, number=1, repeat=runs)
        spent = [seconds * 1e3 for seconds in timer("main").results]
    return tuple(found), spent


def _set(machine: Any, device: Any, batch: Sequence[Tensor]) -> None:
    import tvm

    machine.set_input("main", *(tvm.runtime.tensor(x.numpy(), device) for x in batch))
