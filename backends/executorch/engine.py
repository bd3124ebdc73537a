"""A `.pte` as a function of NumPy arrays, by NumPy and ExecuTorch alone: this file goes into bundles as `engine.py`."""

from __future__ import annotations

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
    import torch  # ExecuTorch's Python runtime takes torch's tensors
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(threads)

    def load(path: Path) -> Run:
        module = portable_lib._load_for_executorch(str(path))

        def run(inputs: Sequence[Array]) -> list[Array]:
            return [out.numpy().copy() for out in module.forward([torch.from_numpy(x) for x in inputs])]

        return run

    return load
