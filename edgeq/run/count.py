"""How many instructions does an inference take on an emulated core? There is no time in the answer, and none follows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from edgeq.graph.package import QuantizedModel
from edgeq.graph.signatures import signatures
from edgeq.run.measurements import Subject, keep
from edgeq.run.place import Place
from edgeq.run.remote import Outcome, Timing
from edgeq.spec import Artifact, DeviceInfo, EdgeqError, InstructionReport

MORE = 4  # inferences beyond the first, whose instructions are the difference of two counts
TRIES, AGREE = 4, 0.01  # counts at most, and how near two have to be


@dataclass(frozen=True, slots=True)
class Counts:
    """int8 and its float twin on one runtime and one emulated core; None where it does not run there."""

    backend: str
    int8: InstructionReport
    twin: InstructionReport | None

    @property
    def fewer(self) -> float | None:
        """Instructions of float over those of int8. No speed-up: instructions take different times."""
        return None if self.twin is None else self.twin.instructions / self.int8.instructions


def count(
    place: Place,
    int8: Artifact,
    float_twin: Artifact | None,
    inputs: Sequence[Tensor],
    *,
    threads: int = 1,
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> Counts:
    """Count an artefact and its float twin at `place`, which is emulated.

    Raises:
        EdgeqError: the artefact does not run there.
    """
    reports: list[InstructionReport | None] = []
    for done, artifact in enumerate((int8, float_twin), start=1):
        progress(f"count {int8.backend}", done, 2)
        reports.append(_counted(place, artifact, inputs, threads) if artifact else None)
    assert reports[0] is not None
    return Counts(int8.backend, reports[0], reports[1])


def _counted(place: Place, artifact: Artifact, inputs: Sequence[Tensor], threads: int) -> InstructionReport:
    """Loading, packing of weights and the first inferences are in both counts, and so not in their difference.

    The first process also compiles Python's caches, so it is not counted; pairs follow until two agree.
    """

    def counted(runs: int) -> tuple[Outcome, int]:
        outcome = place.run(artifact, [inputs], threads=threads, timing=Timing(runs=runs), count=True)
        if outcome.instructions is None:
            raise EdgeqError(f"{place.name} counted no instructions")
        return outcome, outcome.instructions

    outcome, _ = counted(1)
    each = agreed(round((counted(1 + MORE)[1] - counted(1)[1]) / MORE) for _ in range(TRIES))
    if each is not None:
        runtime, _, release = str(outcome.result["runtime"]).rpartition(" ")
        return InstructionReport(place.name, artifact.backend, {runtime: release}, threads, each)
    raise EdgeqError(
        f"{place.name}: no two of {TRIES} counts of {artifact.path.name} agree within {AGREE:.0%}: its threads wait for each"
        " other; count with one thread, on a device that nothing else uses"
    )


def agreed(counts: Iterable[int]) -> int | None:
    """The first of `counts` that is one (above 0) and within AGREE of an earlier one; None where there is none."""
    seen: list[int] = []
    for count in counts:
        if count > 0:
            if any(abs(count - other) <= AGREE * other for other in seen):
                return count
            seen.append(count)
    return None


def kept(
    counts: Counts, model: QuantizedModel, artifacts: tuple[Artifact, Artifact | None], device: DeviceInfo
) -> None:
    """Keep both reports among the measurements; artifacts: of int8, and of float where there is one.

    Raises:
        EdgeqError: the measurements cannot be written.
    """
    told = signatures(model.twin, model.twin_labels)
    keep(counts.int8, device, Subject(model.name, "int8", artifacts[0].path, told, model.plan.layers))
    if counts.twin is not None and artifacts[1] is not None:
        keep(counts.twin, device, Subject(model.name, "float", artifacts[1].path, told, model.plan.layers))


def counts_json(counts: Counts) -> dict[str, Any]:
    """Counts as plain data: the int8 report's fields, then its twin's as `float`."""
    return {
        **dataclasses.asdict(counts.int8),
        "float": dataclasses.asdict(counts.twin) if counts.twin else None,
        "fewer": counts.fewer,
    }
