"""How long does the artefact take, and what would float take on the same runtime in the same run?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from edgeq import backends
from edgeq.backends.timing import events_of, report
from edgeq.graph.package import QuantizedModel
from edgeq.graph.signatures import signatures
from edgeq.run.compare import ratio_of_medians
from edgeq.run.measurements import Subject, Variant, keep, totals
from edgeq.run.place import Place
from edgeq.run.remote import Timing
from edgeq.spec import Artifact, DeviceInfo, EdgeqError, LatencyReport

EARLIER = 10  # profiles of a file, the latest, that tell how far its medians lie apart


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
        return self.twin.total_ms.median / self.int8.total_ms.median

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the speed-up, at 95 %; None where too few runs were measured to know their noise."""
        if self.int8 is None or self.twin is None:
            return None
        found = ratio_of_medians(
            self.int8.run_ms, self.twin.run_ms, earlier=(self.int8.earlier_ms, self.twin.earlier_ms)
        )
        return None if found.low is None or found.high is None else (found.low, found.high)


def profile(
    int8: Artifact,
    float_twin: Artifact | None,
    inputs: Sequence[Tensor],
    *,
    place: Place | None = None,
    threads: int = 1,
    warmup: int = 5,
    runs: int = 30,
    cores: tuple[int, ...] = (),
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> Pair:
    """Time an artefact and its float twin at `place` (None: this process), there on `cores` where some are named.

    Raises:
        DeviceLost: the device went away. EdgeqError: the artefact does not run there, or `place` is emulated.
    """
    place = place or Place()
    if place.info.emulated:
        raise EdgeqError(f"{place.name} is emulated: it counts instructions, and its times mean nothing")
    reports: list[LatencyReport | None] = []
    for done, artifact in enumerate((int8, float_twin), start=1):
        progress(f"profile {int8.backend}", done, 2)
        reports.append(
            _timed(place, artifact, inputs, threads, Timing(warmup, runs, True, cores)) if artifact else None
        )
    return Pair(int8.backend, reports[0], reports[1])


def _timed(
    place: Place, artifact: Artifact, inputs: Sequence[Tensor], threads: int, timing: Timing
) -> LatencyReport | None:
    engine = backends.backend(artifact.backend)
    if place.device is not None and engine.benchmark and place.info.abi.endswith("-android"):
        options = dataclasses.asdict(timing)
        return engine.benchmark(place.device, place.info.model, artifact, threads=threads, **options)
    if not place.in_process(artifact.backend):
        outcome = place.run(artifact, [inputs], threads=threads, timing=timing)
        return from_result(artifact, outcome.result, place.info.model, warmup=timing.warmup)
    found = engine.profile(artifact, inputs, threads=threads, warmup=timing.warmup, runs=timing.runs)
    return dataclasses.replace(found, device=place.info.model) if found else None


def from_result(artifact: Artifact, result: Mapping[str, Any], device: str, *, warmup: int) -> LatencyReport:
    """A runner's result.json as a report. The runner measures all untraced runs first, then the traced ones.

    device: in words, as the report shows it.

    Raises:
        EdgeqError: nothing was timed, or the result is not what a runner of this version writes.
    """
    try:
        run_ms = [float(ms) for ms in result["run_ms"]]
        runtime, _, release = str(result["runtime"]).rpartition(" ")
        threads = int(result["threads"])
    except (KeyError, TypeError, ValueError) as error:
        raise EdgeqError(
            f"the runner's result is not what this version reads ({error!r}): build the runner again"
        ) from error
    if not run_ms:
        raise EdgeqError(f"the runner timed nothing of {artifact.path.name}: ask for at least one run")
    events = events_of(result)
    place = backends.backend(artifact.backend).place
    return report(
        run_ms,
        place(artifact, events) if place and events else (),
        backend=artifact.backend,
        versions={runtime: release},
        threads=threads,
        warmup=warmup,
        method="runner",
        device=device,
    )


def kept(pair: Pair, model: QuantizedModel, artifacts: tuple[Artifact, Artifact | None], device: DeviceInfo) -> Pair:
    """The pair with the numbers under which both reports are kept, and the medians of their files that were kept before.

    artifacts: of int8, and of float where there is one.

    Raises:
        EdgeqError: the measurements cannot be written.
    """
    told = signatures(model.twin, model.twin_labels)

    def number(found: LatencyReport | None, artifact: Artifact | None, variant: Variant) -> LatencyReport | None:
        if found is None or artifact is None:
            return found
        subject = Subject(model.name, variant, artifact.path, told, model.plan.layers)
        before = totals(device, found.backend, artifact=artifact.path, threads=found.threads)[:EARLIER]
        found = dataclasses.replace(found, earlier_ms=tuple(before))
        return dataclasses.replace(found, measurement=keep(found, device, subject))

    int8, twin = artifacts
    return Pair(pair.backend, number(pair.int8, int8, "int8"), number(pair.twin, twin, "float"))


def pair_json(pair: Pair) -> dict[str, Any]:
    """A pair as plain data: the int8 report's fields, null where it cannot run, then its twin's as `float`."""
    names = [f.name for f in dataclasses.fields(LatencyReport)]
    int8: dict[str, Any] = dataclasses.asdict(pair.int8) if pair.int8 else dict.fromkeys(names)
    return {
        **int8,
        "backend": pair.backend,
        "float": dataclasses.asdict(pair.twin) if pair.twin else None,
        "speedup": pair.speedup,
        "speedup_interval": pair.interval,
    }
