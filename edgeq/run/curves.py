"""What a runtime makes of a network's curves: all inputs of each tried, on the machine that runs the rest."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from edgeq import backends
from edgeq.devices import DeviceLost
from edgeq.graph.package import QuantizedModel
from edgeq.graph.trial import alike, entries, trial
from edgeq.run.place import Place
from edgeq.spec import Artifact, EdgeqError


@dataclass(frozen=True, slots=True)
class Tried:
    """The curves of a network that one kernel set computes in float between two integers.

    tables: name of the integer operator → its output for each input from the lowest on, int64, as the runtime gave it. tried: how
    many entries there are, tables that are the same counted once. differing: those that are not the float64 function's,
    rounded half to even; worst: the largest of these differences, in steps.
    """

    tables: Mapping[str, Tensor] = field(default_factory=dict)
    curves: int = 0
    tried: int = 0
    differing: int = 0
    worst: int = 0
    why: str = ""  # they could not be tried

    def told(self) -> dict[str, int | str]:
        """As plain data, the tables left out."""
        numbers = {"curves": self.curves, "tried": self.tried, "differing": self.differing, "worst": self.worst}
        return {**numbers, "said": self.words()}

    def words(self) -> str:
        """`12 curves, all 3,072 inputs tried: equal to their tables`; empty where there are none."""
        if not self.curves:
            return ""
        many = f"{self.curves} curve{'s' if self.curves > 1 else ''} in float between integers"
        if self.why:
            return f"{many}, which could not be tried alone: {self.why}"
        if not self.differing:
            return f"{many}: all {self.tried:,} inputs tried, equal to their tables"
        entry = "entry differs" if self.differing == 1 else "entries differ"
        return f"{many}: of {self.tried:,} inputs tried {self.differing:,} {entry} from their tables, by at most {self.worst}"


def tried(model: QuantizedModel, backend: str, place: Place, kernels: str = "", threads: int = 1) -> Tried:
    """Try every input of every curve of `model` that `backend` computes in float between two integers.

    Raises:
        DeviceLost: the device went away.
    """
    engine, program = backends.backend(backend), model.integers
    rows = {op.kind: engine.target.support(op.kind) for op in program.ops.values()}
    ops = [op for op in program.ops.values() if (row := rows[op.kind]) is not None and row.status == "table"]
    if not ops:
        return Tried()
    sets = alike(program, ops)
    exported, labels, inputs = trial(program, [same[0] for same in sets])
    try:
        with tempfile.TemporaryDirectory() as folder:
            artifact = replace(engine.lower(exported, Path(folder), name="curves", layers=labels), backend=backend)
            (answers,) = place.answers(artifact, [inputs], kernels=kernels, threads=threads)
    except DeviceLost:
        raise
    except EdgeqError as error:
        return Tried(curves=len(ops), why=str(error))
    tables: dict[str, Tensor] = {}
    count = differing = worst = 0
    for same, answer in zip(sets, answers, strict=True):
        found = entries(same[0], answer)
        meant = same[0].entries
        off = (found - meant).abs() if meant is not None else torch.zeros_like(found)
        count, differing, worst = count + off.numel(), differing + int((off > 0).sum()), max(worst, int(off.max()))
        tables |= {op.name: found for op in same}
    return Tried(tables, len(ops), count, differing, worst)


def noted(artifact: Artifact, model: QuantizedModel) -> Artifact:
    """`artifact` with a note of what its runtime makes of the curves here, by the kernels that apps get; none elsewhere."""
    if backends.runs_here(artifact.backend).startswith("no"):
        return artifact
    place = Place()
    kernels, _ = backends.backend(artifact.backend).target.kernel_sets(place.info.abi)[-1]
    said = tried(model, artifact.backend, place, kernels).words()
    return replace(artifact, notes=(*artifact.notes, said)) if said else artifact
