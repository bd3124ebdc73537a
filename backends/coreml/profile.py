"""Time an .mlpackage on this Mac; anywhere else Core ML does not run and there is no latency to report."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from edgeq.backends.coreml import compute_plan
from edgeq.backends.coreml.package import coremltools
from edgeq.backends.coreml.run import load
from edgeq.backends.timing import report, times
from edgeq.spec import Artifact, LatencyReport


def profile(
    artifact: Artifact, inputs: Sequence[Tensor], *, threads: int = 1, warmup: int = 5, runs: int = 30
) -> LatencyReport | None:
    """Total latency of `predict`, all compute units allowed; None off macOS: the interpreter's time means nothing.

    Rows are an estimate: the total times the shares of Core ML's compute plan; none where it makes no plan (before macOS 14.4).
    threads is reported and not obeyed: Core ML schedules itself.
    """
    if sys.platform != "darwin":
        return None
    predict = load(artifact.path, compute="fp16", threads=threads)
    run_ms = times(lambda: predict(inputs), warmup, runs)
    try:
        plan = compute_plan.read(artifact.path)
    except Exception:  # Core ML's own reasons; the total stands without rows
        plan = []
    return report(
        run_ms,
        compute_plan.rows_of(plan, artifact.coverage, float(np.median(run_ms))),
        method=compute_plan.METHOD,
        backend="coreml",
        versions={"coremltools": str(coremltools().__version__), "macOS": platform.mac_ver()[0]},
        threads=threads,
        warmup=warmup,
    )
