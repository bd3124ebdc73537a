"""A .pt2 file as a function of NumPy arrays, where edgeq is not: this file goes into bundles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def loader(threads: int) -> Callable[[Path], Callable[[Sequence[Any]], list[Any]]]:
    """What opens an artefact for `threads` threads."""
    import torch

    torch.set_num_threads(threads)

    def load(path: Path) -> Callable[[Sequence[Any]], list[Any]]:
        module = torch.export.load(path).module()
        return lambda inputs: [y.numpy() for y in module(*map(torch.from_numpy, inputs))]

    return load
