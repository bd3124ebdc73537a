"""One plan tried: made, lowered, timed where it is to run, and judged. What was found outlives the command."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from edgeq import backends
from edgeq.backends.timing import WAITING
from edgeq.graph.package import QuantizedModel
from edgeq.home import home
from edgeq.run.count import count
from edgeq.run.count import kept as keep_counts
from edgeq.run.files import size
from edgeq.run.kept import Kept, digest, slug
from edgeq.run.metric import evaluate
from edgeq.run.place import Place
from edgeq.run.profile import kept as keep_times
from edgeq.run.profile import profile
from edgeq.run.supervised import lowering
from edgeq.schema import fit
from edgeq.search.bench import Bench
from edgeq.search.cost import Measured, measured
from edgeq.search.space import Choice, Space
from edgeq.spec import Artifact, EdgeqError, LatencyReport, Progress

WAITED, TRIES = (
    0.02,
    3,
)  # share of a time for which the thread was on no core, from which on it is measured again; how often


@dataclass(frozen=True, slots=True)
class Trial:
    """What was found of one plan.

    choice: unit → precision. latency_ms: median, or None where instructions are counted or nothing runs; p10_ms, p90_ms: of its
    runs. metric: the task's, by name. noise: power of the outputs' error over the outputs' (edgeq.search.bench). size_bytes: of
    the artefact. units, inserted: see edgeq.search.cost.Measured. predicted, deviation: what was expected of it, in the unit of
    what is measured; None where nothing was. measurement: its number among the kept ones. digest: of the artefact.
    """

    choice: dict[str, str]
    noise: float
    size_bytes: int
    metric: dict[str, float] | None = None
    latency_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    instructions: int | None = None
    units: dict[str, float] = field(default_factory=dict)
    inserted: float = 0.0
    predicted: float | None = None
    deviation: float | None = None
    measurement: int | None = None
    digest: str = ""
    seconds: float = 0.0

    @property
    def cost(self) -> float | None:
        """Milliseconds, or instructions on an emulated core; None in the simulated target."""
        return self.latency_ms if self.instructions is None else float(self.instructions)

    @property
    def measured(self) -> Measured:
        """As the belief over costs learns it."""
        assert self.cost is not None
        return Measured(self.cost, self.units, self.inserted)


@dataclass(frozen=True, slots=True)
class How:
    """How a plan is measured: threads of the runtime, runs before timing and timed, cores of the device."""

    threads: int = 1
    warmup: int = 5
    runs: int = 30
    cores: tuple[int, ...] = ()


class Trials:
    """Plans tried in one space, each once: what an earlier command found of a plan is found again."""

    def __init__(self, bench: Bench, space: Space, place: Place, how: How, folder: Path, progress: Progress) -> None:
        """folder: where trials are kept, and artefacts while they are measured."""
        self.bench, self.space, self.place, self.how, self.folder, self.progress = (
            bench,
            space,
            place,
            how,
            folder,
            progress,
        )
        self.kept = Kept(folder / "trials")
        self.made = 0  # measurements of this command
        self._key = (bench.key, bench.to, dataclasses.asdict(place.info), dataclasses.asdict(how), backends.versions())

    @cached_property
    def float_metric(self) -> dict[str, float] | None:
        """The metric of the float network, where no plan of the search is that."""
        with torch.no_grad():
            return evaluate(self.bench.task, lambda inputs: tuple(self.bench.captured.module(*inputs)))

    def known(self, choice: Choice) -> Trial | None:
        """What was found of it before."""
        name = self._name(choice)
        found = self.kept.get(name, name)
        return None if found is None else fit(found, Trial, self.folder / "trials")

    def run(self, choice: Choice, expected: tuple[float, float] | None = None) -> Trial:
        """Try a plan, or take what is known of it.

        expected: its cost as it was predicted, and the deviation.

        Raises:
            DeviceLost: the device went away; what was finished is kept. EdgeqError: the plan does not lower or run.
        """
        found = self.known(choice)
        if found is not None:
            return found
        began, name = time.monotonic(), self._name(choice)
        model = self.bench.model(self.space.plan(choice))
        predicted, deviation = expected or (None, None)
        trial = Trial(dict(choice), 0.0, self.space.size(choice), predicted=predicted, deviation=deviation)
        if self.bench.to == "simulated":
            judged = self._judged(model.qdq)
            trial = dataclasses.replace(trial, **judged)
        else:
            where = self.folder / "artefacts" / name
            try:
                artifact = self._lowered(model, choice, where)
                trial = dataclasses.replace(
                    trial,
                    size_bytes=size(artifact.path),
                    digest=digest(artifact.path),
                    **self._judged(self._predict(model, artifact)),
                    **self._measured(model, artifact),
                )
            finally:
                shutil.rmtree(where, ignore_errors=True)
        trial = dataclasses.replace(trial, seconds=time.monotonic() - began)
        self.kept.keep(name, name, dataclasses.asdict(trial))
        self.made += 1
        return trial

    def again(self, choice: Choice) -> float | None:
        """The cost of a plan measured once more, by which one tells how far two measurements of one plan lie apart."""
        if self.bench.to == "simulated":
            return None
        model, where = self.bench.model(self.space.plan(choice)), self.folder / "artefacts" / "again"
        try:
            found = self._measured(model, self._lowered(model, choice, where))
        finally:
            shutil.rmtree(where, ignore_errors=True)
        self.made += 1
        again = found.get("latency_ms") if found.get("instructions") is None else found["instructions"]
        return None if again is None else float(again)

    def _name(self, choice: Choice) -> str:
        return digest(sorted(choice.items()), *map(repr, self._key))

    def _judged(self, predict: backends.Predict) -> dict[str, Any]:
        metric = evaluate(self.bench.task, predict)
        if metric is not None and not all(value == value for value in metric.values()):
            names = [name for name, value in metric.items() if value != value]
            raise EdgeqError(
                f"{self.bench.task.path or self.bench.task.name}: evaluate() returned NaN as {names[0]!r} of a plan that was "
                "tried: a search cannot choose by it; mend evaluate(), or leave it out there"
            )
        return {"metric": metric, "noise": self.bench.noise(predict)}

    def _predict(self, model: QuantizedModel, artifact: Artifact) -> backends.Predict:
        """The artefact itself where this process runs it; elsewhere the QDQ program, as sending every image would take long."""
        return self.place.predict(artifact) if self.place.in_process(artifact.backend) else model.qdq

    def _lowered(self, model: QuantizedModel, choice: Choice, where: Path) -> Artifact:
        where.mkdir(parents=True, exist_ok=True)
        floating = not model.integers.ops and all(choice[u.name] == "fp32" for u in self.space.units)
        program, labels = (model.twin, model.twin_labels) if floating else (model.program, model.labels)
        options: dict[str, Any] = {"outputs": tuple(info.name for info in model.outputs)}
        known = backends.RUNTIMES[backends.runtime_of(self.bench.to)].options
        with lowering(self.bench.to):
            return backends.backend(self.bench.to).lower(
                program, where, name="model", layers=labels, **{k: v for k, v in options.items() if k in known}
            )

    def _measured(self, model: QuantizedModel, artifact: Artifact) -> dict[str, Any]:
        with alone(self.place.name):
            if self.place.info.emulated:
                counts = count(self.place, artifact, None, model.golden, threads=self.how.threads)
                with contextlib.suppress(EdgeqError):  # a database that cannot be written costs no search
                    keep_counts(counts, model, (artifact, None), self.place.info)
                return {"instructions": counts.int8.instructions}
            report = self._timed(model, artifact)
        if report is None:  # nothing here runs it at its speed
            return {}
        taken = measured(self.space, report)
        spread = report.total_ms
        return {
            "latency_ms": spread.median, "p10_ms": spread.p10, "p90_ms": spread.p90, "units": dict(taken.units),
            "inserted": taken.inserted, "measurement": report.measurement,
        }  # fmt: skip

    def _timed(self, model: QuantizedModel, artifact: Artifact) -> LatencyReport | None:
        """Measured again where something else had the cores; the time of least waiting counts."""
        how, found = dataclasses.asdict(self.how), []
        for _ in range(TRIES):
            pair = profile(artifact, None, model.golden, place=self.place, **how)
            if pair.int8 is None:
                return None
            with contextlib.suppress(EdgeqError):
                pair = keep_times(pair, model, (artifact, None), self.place.info)
            assert pair.int8 is not None
            found.append((_waited(pair.int8), pair.int8))
            if found[-1][0] <= WAITED:
                break
        return min(found, key=lambda pair: pair[0])[1]


def _waited(report: LatencyReport) -> float:
    """Share of the time for which the measured thread was on no core."""
    lost = sum(row.ms for row in report.rows if row.name == WAITING)
    return lost / report.total_ms.median if report.total_ms.median > 0 else 0.0


@contextlib.contextmanager
def alone(device: str) -> Iterator[None]:
    """While it lasts no other search measures on this device: a file in edgeq's home is locked (not on Windows)."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    place = home() / "locks"
    place.mkdir(parents=True, exist_ok=True)
    with (place / f"{slug(device)}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also where this process is killed
        yield
