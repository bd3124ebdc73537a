"""Time a .pt2 file here, as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

from torch import Tensor

from edgeq.backends.skeleton.run import load
from edgeq.backends.timing import report, times
from edgeq.spec import Artifact, LatencyReport


def profile(
    artifact: Artifact, inputs: Sequence[Tensor], *, threads: int = 1, warmup: int = 5, runs: int = 30
) -> LatencyReport:
    """Time `runs` calls after `warmup`; nothing is traced, so there are no rows."""
    predict = load(artifact.path, threads=threads)
    spent = times(lambda: predict(inputs), warmup, runs)
    return report(spent, backend="skeleton", versions={"torch": version("torch")}, threads=threads, warmup=warmup)
