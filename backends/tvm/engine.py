"""A compiled library as a function of NumPy arrays, by NumPy and TVM alone: this file goes into bundles as `engine.py`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]


def loader(threads: int) -> Callable[[Path], Run]:
    """What opens an artefact for `threads` threads.

    Raises:
        ImportError: the runtime's package is not there.
    """
    os.environ.setdefault("TVM_BIND_THREADS", "0")  # else TVM nails this whole process to one core
    os.environ["TVM_NUM_THREADS"] = str(threads)  # else it counts cores at every loop, and takes half of them at most
    import tvm

    def load(path: Path) -> Run:
        machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
        tvm.get_global_func("runtime.config_threadpool")(1, threads)

        def run(inputs: Sequence[Array]) -> list[Array]:
            results = machine["main"](*(tvm.runtime.tensor(x) for x in inputs))
            return [r.numpy() for r in (results if hasattr(results, "__len__") else [results])]

        return run

    return load
