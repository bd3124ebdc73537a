"""Activations of all calibration frames on disk: one file a tensor, read and written a few frames at a time.

Plain reads instead of memory maps, so that what was read does not count as memory of this process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class _Record:
    """One frame of a tensor: its shape (the first axis included) and NumPy dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def count(self) -> int:
        return math.prod(self.shape)


class Cache:
    """Named tensors of `frames` frames each in `folder`, which must exist. A frame is one calibration batch."""

    def __init__(self, folder: Path) -> None:
        """Start empty."""
        self.folder = folder
        self.records: dict[str, _Record] = {}
        self.parts: dict[str, list[str]] = {}  # name of several tensors -> their own names
        self.frames = 0

    def write(self, name: str, start: int, tensor: Tensor | Sequence[Tensor], frames: int) -> None:
        """Store `frames` frames of `name`, stacked along the first axis of `tensor`, from frame `start` on.

        What an operator with several results gives is kept part by part, and read as a list.
        """
        if not isinstance(tensor, Tensor):
            self.parts[name] = [f"{name} {index}" for index in range(len(tensor))]
            for part, one in zip(self.parts[name], tensor, strict=True):
                self.write(part, start, one, frames)
            return
        stored = tensor.detach().contiguous().numpy()
        shape = (stored.shape[0] // frames, *stored.shape[1:]) if stored.ndim else ()
        record = self.records.setdefault(name, _Record(shape, stored.dtype))
        path = self._path(name)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(start * record.count * record.dtype.itemsize)
            stored.tofile(file)
        self.frames = max(self.frames, start + frames)

    def read(self, name: str, start: int, stop: int) -> Any:
        """Frames `start` to `stop` (left out) of `name`, stacked along the first axis; a list where several were written."""
        if name in self.parts:
            return [self.read(part, start, stop) for part in self.parts[name]]
        record = self.records[name]
        count, offset = (stop - start) * record.count, start * record.count * record.dtype.itemsize
        found = np.fromfile(self._path(name), record.dtype, count, offset=offset)
        shape = ((stop - start) * record.shape[0], *record.shape[1:]) if record.shape else ()
        return torch.from_numpy(found.reshape(shape))

    def drop(self, name: str) -> None:
        """Forget `name` where it is known."""
        for part in self.parts.pop(name, ()):
            self.drop(part)
        if self.records.pop(name, None) is not None:
            self._path(name).unlink()

    def __contains__(self, name: str) -> bool:
        return name in self.records or name in self.parts

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"
