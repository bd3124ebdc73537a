"""How long does the artefact take, and what would float take on the same runtime in the same run?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from edgeq import backends
from edgeq.devices import host
from edgeq.spec import Artifact, LatencyReport


@dataclass(frozen=True, slots=True)
class Pair:
    """int8 and its float twin on one runtime, measured one after the other; None where it cannot run here."""

    backend: str
    int8: LatencyReport | None
    twin: LatencyReport | None

    @property
    def speedup(self) -> float | None:
        """Float median over int8 median."""
        if self.int8 is None or self.twin is None:
            return None
        return self.twin.median_ms / self.int8.median_ms


def profile(
    int8: Artifact,
    float_twin: Artifact | None,
    inputs: Sequence[Tensor],
    *,
    threads: int = 1,
    warmup: int = 5,
    runs: int = 30,
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> Pair:
    """Time an artefact and its float twin on this host."""
    engine = backends.backend(int8.backend)
    reports: list[LatencyReport | None] = []
    for done, artifact in enumerate((int8, float_twin), start=1):
        progress(f"profile {int8.backend}", done, 2)
        if artifact is None:
            reports.append(None)
            continue
        report = engine.profile(artifact.path, inputs, threads=threads, warmup=warmup, runs=runs)
        reports.append(_layered(report, artifact) if report else None)
    return Pair(int8.backend, reports[0], reports[1])


def _layered(report: LatencyReport, artifact: Artifact) -> LatencyReport:
    """Rows that know only the artefact's operator get its layers from the coverage row of the same name."""
    layers = {row.name: row.layers for row in artifact.coverage}
    rows = tuple(dataclasses.replace(r, layers=r.layers or layers.get(r.name, ())) for r in report.rows)
    return dataclasses.replace(report, rows=rows, device=str(host.describe()["model"]))


def pair_json(pair: Pair) -> dict[str, Any]:
    """A pair as plain data."""
    return {
        "backend": pair.backend,
        "int8": dataclasses.asdict(pair.int8) if pair.int8 else None,
        "float": dataclasses.asdict(pair.twin) if pair.twin else None,
        "speedup": pair.speedup,
    }
