"""Run a .pte in this process with the runtime in the wheel."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeq.backends.executorch.pte import check_pte
from edgeq.graph.quiet import quiet
from edgeq.spec import EdgeqError


def load(path: Path, *, threads: int = 1) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """A function from flat inputs to flat outputs.

    threads: size of ExecuTorch's thread pool, which all programs of this process share; the latest load sets it.

    Raises:
        EdgeqError: executorch is missing, or `path` is no whole .pte, or XNNPACK refuses it.
    """
    module = open_module(path, threads=threads)
    ran = False

    def predict(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        nonlocal ran
        with contextlib.nullcontext(str) if ran else quiet() as said:  # the first run compiles, and prints
            try:
                results = module.forward([x.detach().contiguous() for x in inputs])
            except RuntimeError as error:
                raise EdgeqError(
                    f"{path}: the ExecuTorch runtime cannot run it ({str(error).splitlines()[0]}): {_cause(said())}; "
                    "rewrite that operator or use another runtime"
                ) from error
        ran = True
        return tuple(r.clone() if isinstance(r, Tensor) else torch.tensor(r) for r in results)

    return predict


def _cause(printed: str) -> str:
    """Why a forward fails, in words: the runtime raises a number, and prints the operator."""
    if missing := sorted(set(re.findall(r"Missing operator: \[\d+\] (\S+)", printed))):
        return f"the wheel's runtime has no kernel for {', '.join(missing)}"
    if refused := re.search(r"Failed to create (\w+) node", printed):
        return f"its XNNPACK refuses the {refused[1]} operator that the lowering made"
    if failed := re.search(r"KernelCall failed at instruction \S+ in operator (\S+?):", printed):
        return f"its kernel of {failed[1]} fails"
    return "one of the float operators that edgeq export lists is the likely cause"


def open_module(path: Path, *, threads: int, trace: bool = False) -> Any:
    """The runtime's own module object; `trace` records an ETDump."""
    check_pte(path)
    bindings = portable_lib()
    with quiet():
        if bindings._threadpool_get_thread_count() != threads:
            bindings._unsafe_reset_threadpool(threads)
        try:
            module = bindings._load_for_executorch(str(path), enable_etdump=trace)
            module.method_meta("forward")
        except RuntimeError as error:
            raise EdgeqError(f"{path}: the ExecuTorch runtime refuses this program ({error})") from error
    return module


@functools.cache
def portable_lib() -> Any:
    """ExecuTorch's bindings, imported silently."""
    with quiet():
        from executorch.extension.pybindings import portable_lib as bindings
    return bindings
