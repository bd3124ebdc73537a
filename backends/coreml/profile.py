"""Time an .mlpackage on this Mac; anywhere else Core ML does not run and there is no latency to report."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence

from torch import Tensor

from edgeq.backends.coreml.package import coremltools
from edgeq.backends.coreml.run import load
from edgeq.backends.timing import report, times
from edgeq.spec import Artifact, LatencyReport


def profile(
    artifact: Artifact, inputs: Sequence[Tensor], *, threads: int = 1, warmup: int = 5, runs: int = 30
) -> LatencyReport | None:
    """Total latency of `predict`, all compute units allowed; None off macOS: the interpreter's time means nothing.

    threads is reported and not obeyed: Core ML schedules itself.
    """
    if sys.platform != "darwin":
        return None
    predict = load(artifact.path, compute="fp16", threads=threads)
    return report(
        times(lambda: predict(inputs), warmup, runs),
        backend="coreml",
        versions={"coremltools": str(coremltools().__version__), "macOS": platform.mac_ver()[0]},
        threads=threads,
        warmup=warmup,
    )
