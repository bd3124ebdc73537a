"""What the point range and the static limits leave out of many frames: counted in each, said once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.lidar import pipeline
from edgeq.spec import EdgeqWarning


class Tally:
    """Counts over frames: `add` each prepared one, then `warn`, or print it."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.frames = self.points = self.ignored = self.crowded = 0
        self.dropped: NDArray[np.int64] = np.zeros(0, np.int64)  # by level, as is `found`
        self.found: NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, ready: pipeline.Prepared) -> None:
        """Count a frame."""
        self.frames += 1
        self.points += ready.points
        self.ignored += ready.ignored
        self.crowded += any(ready.dropped)
        self.dropped = self.dropped + ready.dropped if self.dropped.size else np.array(ready.dropped)
        self.found = self.found + ready.found if self.found.size else np.array(ready.found)

    def left_out(self) -> str:
        """What the static limits left out of all frames, in words; empty where they left out nothing."""
        return pipeline.left_out(self.dropped.tolist(), self.found.tolist())

    def __str__(self) -> str:
        """One line of totals."""
        limits = f"{self.left_out()} left out of {self.crowded} frames" if self.crowded else "nothing left out"
        return (
            f"{self.frames} frames: {self.ignored} of {self.points} points out of range or NaN; static limits: {limits}"
        )

    def warn(self, what: str) -> None:
        """Warn where the static limits left something out of the frames, `what` they are for."""
        if self.crowded:
            warnings.warn(
                f"{what}: {self.crowded} of {self.frames} frames hold more than the pipeline's limits, so {self.left_out()} "
                "were left out, those with the fewest points first; raise max_pillars or limits if that is too many",
                EdgeqWarning,
                stacklevel=3,
            )


def inputs(clouds: Iterable[NDArray[Any]], settings: Mapping[str, Any], what: str) -> Iterator[tuple[Tensor, ...]]:
    """Each of `clouds` [N, ≥4] as the network's inputs; behind the last one warns of what the limits left out.

    settings: the pipeline. what: what the frames are for, as "calibration".
    """
    tally = Tally()
    for points in clouds:
        ready = pipeline.prepare(points, dict(settings))
        tally.add(ready)
        yield tuple(torch.from_numpy(a) for a in ready.inputs)
    tally.warn(what)
