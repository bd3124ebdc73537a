"""Run a compiled library on this host."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.dlpack import from_dlpack

from edgeq.backends.tvm.imported import tvm_package
from edgeq.spec import EdgeqError

ALIGNMENT = 64  # bytes; torch's own allocations have it, NumPy's and slices need not


def load(path: Path, *, threads: int = 1) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A function from flat inputs to flat outputs, torch tensors both ways.

    threads: size of TVM's thread pool, which all libraries of this process share.

    Raises:
        EdgeqError: TVM is missing, or `path` is no library that edgeq compiled.
    """
    machine = open_library(path, threads=threads)

    def predict(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return call(machine, inputs)

    return predict


def call(machine: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Run `main` of a virtual machine.

    Raises:
        EdgeqError: the inputs' number, shapes or dtypes are not the program's.
    """
    try:
        results = machine["main"](*to_tvm(inputs))
    except (TypeError, ValueError) as error:
        raise EdgeqError(f"the compiled program takes other inputs (shape or dtype): {_last_line(error)}") from error
    return tuple(from_dlpack(r) for r in (results if hasattr(results, "__len__") else [results]))


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def to_tvm(inputs: Sequence[Tensor]) -> list[Any]:
    """The same memory as TVM tensors; copied where it does not begin at a multiple of 64 bytes, which TVM refuses."""
    import tvm

    dense = [x.detach().contiguous() for x in inputs]
    return [tvm.runtime.from_dlpack(x if x.data_ptr() % ALIGNMENT == 0 else x.clone()) for x in dense]


def open_library(path: Path, *, threads: int) -> Any:
    """The virtual machine of a compiled library; see `load`."""
    tvm = tvm_package()
    check_library(path)
    try:
        with tempfile.TemporaryDirectory() as folder:  # of a name that is open the system gives what lay there before
            executable = tvm.runtime.load_module(str(shutil.copy(path, folder)))
        machine = tvm.relax.VirtualMachine(executable, tvm.cpu())
        machine["main"]
    except (RuntimeError, AttributeError, ValueError) as error:
        raise EdgeqError(f"{path} is no library that edgeq compiled with TVM: export it again") from error
    use_threads(threads)
    return machine


def use_threads(threads: int) -> None:
    """Set the number of threads for every library of this process.

    Left to itself, TVM counts the computer's cores anew at every parallel loop (6 µs each time), halves the count,
    assuming two threads a core, and runs the loop on one thread where one is left, whatever its pool was told.
    """
    os.environ.setdefault("TVM_BIND_THREADS", "0")  # else TVM nails this whole process to one core
    # a pool never grows, so it is made as large as it can be of use; its idle threads sleep
    os.environ["TVM_NUM_THREADS"] = str(max(threads, os.cpu_count() or 1))
    tvm_package().get_global_func("runtime.config_threadpool")(1, threads)
    os.environ["TVM_NUM_THREADS"] = str(threads)


def check_library(path: Path) -> None:
    """Refuse what a loader would crash on: a missing, foreign or truncated ELF file (little-endian, sections at the end).

    Raises:
        EdgeqError: the file cannot be loaded.
    """
    if not path.is_file():
        raise EdgeqError(f"there is no {path}: export the program to tvm first")
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:4] != b"\x7fELF":
        raise EdgeqError(f"{path} is no shared library: export the program to tvm again")
    wide = head[4] == 2  # ELFCLASS64
    (sections,) = struct.unpack_from("<Q", head, 40) if wide else struct.unpack_from("<I", head, 32)
    size, count = struct.unpack_from("<HH", head, 58 if wide else 46)
    if sections + size * count > path.stat().st_size:
        raise EdgeqError(f"{path} is truncated: export the program to tvm again")
