"""Calibration batches: checked, spooled to disk where they are read again, stacked where that is faster."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from edgeq.calib.cache import Cache
from edgeq.calib.floats import Floats
from edgeq.graph.capture import Captured, leaves_like
from edgeq.spec import EdgeqError, EdgeqWarning, Progress

STACKED: Final = (
    1 << 18
)  # float32 values of the largest activation of stacked batches: 1 MiB, which stays in the caches


def batches(captured: Captured, data: Iterable[Any]) -> Iterator[tuple[Tensor, ...]]:
    """Flat calibration batches, each checked against the network's inputs; warns of an input that is 0 in all of them.

    Raises:
        EdgeqError: no batches at all, or one of the wrong structure, shape or dtype, or with NaN or Inf.
    """
    count, told = 0, {i.name for i in captured.inputs if not i.dtype.startswith("float")}  # inputs that say something
    for count, raw in enumerate(data, start=1):
        where = f"calibration batch {count - 1}"
        batch = leaves_like(captured.nested, raw, where)
        if len(batch) != len(captured.inputs):
            raise EdgeqError(
                f"{where} has {len(batch)} tensors, the network takes {len(captured.inputs)}: "
                "yield tuples like example_inputs()"
            )
        for tensor, info in zip(batch, captured.inputs, strict=True):
            if not isinstance(tensor, Tensor):
                raise EdgeqError(f"{where}, input {info.name!r}: a {type(tensor).__name__} instead of a tensor")
            if tuple(tensor.shape) != info.shape:
                raise EdgeqError(
                    f"{where}, input {info.name!r}: shape {tuple(tensor.shape)}, but example_inputs() fixed {info.shape}: "
                    "yield that shape, or change example_inputs()"
                )
            if str(tensor.dtype) != f"torch.{info.dtype}":
                raise EdgeqError(f"{where}, input {info.name!r}: dtype {tensor.dtype}, expected torch.{info.dtype}")
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise EdgeqError(f"{where}, input {info.name!r}: contains NaN or Inf; clean the calibration data")
            if info.name not in told and bool(tensor.any()):
                told.add(info.name)
        yield batch
    if count == 0:
        raise EdgeqError("calibration() yields no batches: give at least one, 32 or more are better")
    silent = ", ".join(repr(i.name) for i in captured.inputs if i.name not in told)
    if silent:
        warnings.warn(
            f"input {silent} is 0 in every calibration batch, so its scale is arbitrary, and so are those behind it: let "
            "calibration() yield data as the network will see it",
            EdgeqWarning,
            stacklevel=1,
        )


class Spooled:
    """Calibration batches that lie in a cache, read anew each time they are asked for."""

    def __init__(self, cache: Cache, captured: Captured) -> None:
        self.cache, self.names = cache, [f"float {n.name}" for n in Floats(captured).placeholders]

    def __len__(self) -> int:
        return self.cache.frames

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for frame in range(self.cache.frames):
            yield tuple(self.cache.read(name, frame, frame + 1) for name in self.names)


def spooled(cache: Cache, captured: Captured, data: Iterable[tuple[Tensor, ...]], progress: Progress) -> Spooled:
    """Write every batch of `data` into the cache."""
    found = Spooled(cache, captured)
    for index, batch in enumerate(data):
        for name, tensor in zip(found.names, batch, strict=True):
            cache.write(name, index, tensor, 1)
        progress("read calibration data", index + 1, None)
    return found


def stacks(floats: Floats, frames: Iterable[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Batches in groups that are computed at once: as many as STACKED allows, where the network takes more than one."""
    frames = iter(frames)
    two = list(itertools.islice(frames, 2))
    several = len(two) == 2 and floats.fits(STACKED) > 1 and floats.stackable(*two)
    size, frames = floats.fits(STACKED) if several else 1, itertools.chain(two, frames)
    while group := list(itertools.islice(frames, size)):
        yield group
