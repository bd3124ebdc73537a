"""Run a recipe: its steps in their order, neighbours that go through the layers together in one walk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from edgeq.calib.bench import Bench
from edgeq.calib.cache import Cache
from edgeq.calib.data.observation import Statistics
from edgeq.calib.lent import lent
from edgeq.calib.needs import DATA, NEIGHBOURS, SEEN
from edgeq.calib.objectives import Hook, Judged, Objective, objective
from edgeq.calib.unlike import Again
from edgeq.calib.walk import Visitor, Walk
from edgeq.calib.workspace import workspace
from edgeq.graph.annotate import Annotation
from edgeq.graph.capture import Captured
from edgeq.graph.numbers import Resolved
from edgeq.graph.ordered import ordered
from edgeq.spec import EdgeqError, Progress, Recipe


def needs(recipe: Recipe) -> frozenset[str]:
    """What the steps of a recipe ask for."""
    return frozenset().union(*(step.needs for step in recipe.steps))


def learns(recipe: Recipe) -> bool:
    """Whether a step goes through the layers with something to keep if it is interrupted."""
    return any(isinstance(step, Visitor) and step.learns for step in recipe.steps)


@ordered()
def calibrate(
    captured: Captured,
    annotation: Annotation,
    recipe: Recipe,
    data: Iterable[Any] | None,
    progress: Progress,
    *,
    hook: Hook = lambda name: None,
    output: Path | None = None,
    again: Again | None = None,
    settled: frozenset[str] = frozenset(),
    statistics: Statistics | None = None,
) -> tuple[Annotation, Resolved]:
    """Resolve every scale of `annotation` by `recipe` on calibration `data` (batches like the example inputs).

    data: None where there is none, which weights alone may do without. hook: the task's function of a name, for which an
    objective may ask. output: beside it, in `<output>.partial`, lies what a long calibration has finished; an
    interrupted one goes on from there, and the caller removes the folder once the result is safe. again, settled: see Bench.
    statistics: filled, or read instead of `data` where they suffice, so that a second plan for `captured` costs no pass; recipes
    that go through data again (DATA among their needs) leave them alone.
    Returns the annotation and its numbers, with the weights that a step scaled; `captured` stays as it was.

    Raises:
        EdgeqError: the data does not fit the network, or it lacks data, codes or functions of the task that the recipe needs.
    """
    wanted = needs(recipe)
    reads = DATA in wanted or (SEEN in wanted and bool(annotation.tensors.parent))
    _refuse(recipe, annotation, given=data is not None or not reads)
    objectives = _objectives(recipe, captured, hook)
    kept = workspace(output if learns(recipe) else None) if DATA in wanted else nullcontext()
    with kept as home, lent(captured.module) as exchanged:
        key = fingerprint(captured, recipe)
        bench = Bench(captured, annotation, data if reads else None, progress, again, settled, home, key)
        if home is None:
            bench.statistics = statistics
        else:
            bench.cache, bench.objectives = Cache(home.cache), objectives
        _run(recipe, bench)
        bench.resolved.constants = exchanged()
        return bench.annotation, bench.resolved


def _run(recipe: Recipe, bench: Bench) -> None:
    """The steps in turn; neighbours that go from layer to layer make one walk together."""
    together: list[Visitor] = []
    for step in recipe.steps:
        visitor = step.run(bench)
        if visitor is not None:
            together.append(visitor)
        elif together:
            Walk(bench, together).run()
            together = []
    if together:
        Walk(bench, together).run()


def _objectives(recipe: Recipe, captured: Captured, hook: Hook) -> dict[str, Objective]:
    """Those that the steps ask for, by their names."""
    asked = [name for step in recipe.steps if isinstance(step, Judged) for name in step.objectives]
    found = {name: objective(name) for name in asked}
    for each in found.values():
        each.prepare(captured, hook)
    return found


def _refuse(recipe: Recipe, annotation: Annotation, *, given: bool) -> None:
    """Ask for what the steps need. given: there is the data that they read.

    Raises:
        EdgeqError: see `calibrate`; nothing was computed yet.
    """
    wanted = needs(recipe)
    if not given:
        raise EdgeqError(
            f"recipe {recipe.name!r} needs calibration batches: add calibration() to the task file, or give "
            "quantize(…, calibration=[batch, …]), or let --data zeroq make them out of the network; "
            "precision w8 (weights only) needs none with most recipes"
        )
    tables = [
        key for key, (_, p) in annotation.weight_only.items() if p.weight is not None and p.weight.table is not None
    ]
    if NEIGHBOURS in wanted and tables:
        raise EdgeqError(
            f"recipe {recipe.name!r} learns between neighbouring integers, and the weights of {tables[0]!r} lie on a table of "
            "other values: use a recipe that rounds to the nearest, such as minmax or mse"
        )


def fingerprint(captured: Captured, recipe: Recipe) -> hashlib._Hash:
    """A hash of recipe and weights; with the data they decide all numbers, but for what computes in which precision."""
    made_by = version("edgeq"), torch.__version__
    found = hashlib.sha256(repr((recipe.steps, made_by)).encode())
    for name, tensor in sorted(captured.module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found
