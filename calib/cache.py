"""Activations of all calibration frames on disk: one file a tensor, read and written a few frames at a time.

Plain reads instead of memory maps, so that what was read does not count as memory of this process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

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
        self.frames = 0

    def write(self, name: str, start: int, tensor: Tensor, frames: int) -> None:
        """Store `frames` frames of `name`, stacked along the first axis of `tensor`, from frame `start` on."""
        stored = tensor.detach().contiguous().numpy()
        shape = (stored.shape[0] // frames, *stored.shape[1:]) if stored.ndim else ()
        record = self.records.setdefault(name, _Record(shape, stored.dtype))
        path = self._path(name)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.seek(start * record.count * record.dtype.itemsize)
            stored.tofile(file)
        self.frames = max(self.frames, start + frames)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Frames `start` to `stop` (left out) of `name`, stacked along the first axis."""
        record = self.records[name]
        count, offset = (stop - start) * record.count, start * record.count * record.dtype.itemsize
        found = np.fromfile(self._path(name), record.dtype, count, offset=offset)
        shape = ((stop - start) * record.shape[0], *record.shape[1:]) if record.shape else ()
        return torch.from_numpy(found.reshape(shape))

    def drop(self, name: str) -> None:
        """Forget `name` where it is known."""
        if self.records.pop(name, None) is not None:
            self._path(name).unlink()

    def __contains__(self, name: str) -> bool:
        return name in self.records

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"
