"""A task captured and observed once, so that each plan of a search costs its numbers alone."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeq import backends
from edgeq.assembly import assemble, confirmed, plan_of, silent, supplied
from edgeq.calib import written
from edgeq.calib.calibrate import calibrate, fingerprint
from edgeq.calib.data.observation import Statistics
from edgeq.graph.annotate import annotate
from edgeq.graph.capture import leaves_like
from edgeq.graph.ordered import ordered
from edgeq.graph.package import QuantizedModel
from edgeq.search.space import Space, planned, space
from edgeq.spec import EdgeqError, Progress, QuantPlan, Recipe
from edgeq.task import Task, hook

FRAMES = 32  # calibration batches on which a plan's outputs are compared with float's


class Bench:
    """What the plans of one search are made from.

    target: of the runtime. lower: the metric is better the lower it is. frames: flat calibration batches
    on which outputs are compared.
    """

    def __init__(
        self,
        task: Task,
        to: str,
        *,
        recipe: str | Path | Recipe = "default",
        settings: Sequence[str] = (),
        data: str | Path | None = None,
        keep_float: Sequence[str] = (),
        output: Path | None = None,
        lower: bool = False,
        progress: Progress = silent,
    ) -> None:
        """Capture the network and read its calibration batches.

        Raises:
            EdgeqError: see edgeq.quantize; or there are no batches.
        """
        supply, settings = supplied(data, settings, None)
        self.task, self.to, self.lower = task, to, lower
        self.target = backends.target(to if to in ("portable", "simulated") else backends.runtime_of(to))
        self.recipe = written.changed(written.chosen(recipe), settings)
        progress("capture", 0, None)
        self.captured, batches = confirmed(task, supply.maker(output, progress))
        if batches is None:
            raise EdgeqError(
                "a search compares plans on calibration batches: add calibration() to the task file, or --data zeroq"
            )
        self.batches = list(batches)
        self.supply, self.keep_float, self.statistics = supply, keep_float, Statistics()
        nested = self.captured.nested
        self.frames = [leaves_like(nested, raw, "calibration batch") for raw in itertools.islice(self.batches, FRAMES)]

    def space(self, wanted: Sequence[str]) -> Space:
        """The units of the network and what each can choose between.

        Raises:
            EdgeqError: there is nothing to choose.
        """
        base = plan_of(self.captured, self.target, self.recipe, "w8a8", None, self.keep_float, self.supply.told)
        base = self._resolved(base, frozenset()).plan  # without the layers that are better kept in float
        annotation = annotate(self.captured, self.target, base)
        return space(self.captured, annotation, self.target, base, wanted)

    def planned(self, plan: QuantPlan) -> Space:
        """The units of a plan as it is, each with float beside."""
        return planned(self.captured, annotate(self.captured, self.target, plan), plan)

    def model(self, plan: QuantPlan) -> QuantizedModel:
        """The program of a plan, as `quantize` makes it of that plan's file.

        Raises:
            EdgeqError: the target does not compute the plan.
        """
        return self._resolved(plan, frozenset(plan.layers))

    def _resolved(self, plan: QuantPlan, settled: frozenset[str]) -> QuantizedModel:
        again = partial(annotate, self.captured, self.target, plan)
        annotation, resolved = calibrate(
            self.captured, again(), self.recipe, self.batches, silent,
            hook=partial(hook, self.task), again=again, statistics=self.statistics, settled=settled,
        )  # fmt: skip
        plan = dataclasses.replace(plan, layers={**plan.layers, **dict.fromkeys(annotation.kept, "fp32")})
        made = assemble(self.task, self.captured, annotation, resolved, plan)
        made.data, made.distilled = self.supply.origin(self.task), tuple(self.supply.distilled)
        return made

    @cached_property
    def floats(self) -> list[tuple[Tensor, ...]]:
        """The float network's outputs on `frames`."""
        with torch.no_grad(), ordered():
            return [tuple(self.captured.module(*frame)) for frame in self.frames]

    def noise(self, predict: backends.Predict) -> float:
        """Power of the error that `predict` makes on `frames` over the power of float's outputs: the mean over the outputs."""
        given = [predict(frame) for frame in self.frames]
        ratios = []
        for wanted, got in zip(zip(*self.floats, strict=True), zip(*given, strict=True), strict=True):
            want, have = (
                torch.stack(wanted).double(),
                torch.stack([t.reshape(w.shape) for t, w in zip(got, wanted, strict=True)]),
            )
            if (power := float(want.square().sum())) > 0:
                ratios.append(float((have.double() - want).square().sum()) / power)
        return sum(ratios) / len(ratios) if ratios else 0.0

    @cached_property
    def key(self) -> str:
        """A hash of what decides a plan's numbers: weights, recipe, batches."""
        found: Any = hashlib.sha256(fingerprint(self.captured, self.recipe).digest())
        for batch in self.batches:
            for tensor in leaves_like(self.captured.nested, batch, "calibration batch"):
                found.update(tensor.contiguous().numpy().tobytes())
        return str(found.hexdigest())
