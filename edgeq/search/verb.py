"""Search: the verb, from a task to the plan that was asked for, its front, and the exported winner."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeq import backends
from edgeq.api import export
from edgeq.assembly import as_task, silent
from edgeq.devices import open_device
from edgeq.graph.package import dump_plan
from edgeq.graph.store import check_replaceable, write_json
from edgeq.pages.search import write_search
from edgeq.run.kept import digest
from edgeq.run.place import Place
from edgeq.search.bench import Bench
from edgeq.search.found import told_of
from edgeq.search.harm import harms
from edgeq.search.loop import Outcome, Search, Wanted
from edgeq.search.space import FLOAT, Space
from edgeq.search.trial import How, Trials
from edgeq.spec import EdgeqError, Progress, Recipe, precision
from edgeq.task import Task

FOLDER = ".search"  # beside the output: trials, plans, search.json, search.html


def search(
    task: Task | str | Path,
    *,
    to: str,
    device: str = "host",
    budget_ms: float | None = None,
    budget_instructions: int | None = None,
    max_drop: float | None = None,
    budget_bytes: int | None = None,
    metric: str | None = None,
    lower_is_better: bool = False,
    precisions: Sequence[str] = (),
    recipe: str | Path | Recipe = "default",
    settings: Sequence[str] = (),
    data: str | Path | None = None,
    keep_float: Sequence[str] = (),
    sensitivity: str = "sqnr",
    rounds: int = 8,
    threads: int = 1,
    runs: int = 30,
    cores: Sequence[int] = (),
    fresh: bool = False,
    output: str | Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The plan of least loss within a budget as measured, or the cheapest within a loss; saved and exported to `output`.

    to: runtime; its target says which precisions there are. device: where plans are timed, one at a time.
    budget_ms: of the median latency; budget_instructions in its place on an emulated device. max_drop: how much the metric may
    fall below float's, absolute. budget_bytes: of the artefact. At least one of them is given.
    metric: of those that evaluate() returns, the first where None; without evaluate() plans are judged by their outputs' error.
    sensitivity: how it is told what each layer hurts alone (edgeq.calib.sensitivity); trials correct it.
    precisions: to choose between; all that the target has where empty. rounds: plans to try beside the uniform ones.
    fresh: measure again what an earlier search has measured.
    Beside `output`, in `<output>.search`, lie all trials, by which a search that was killed goes on, `search.json` (what is
    returned, see docs/json.md), `search.html` and the plan file of each point of the front.

    Raises:
        DeviceLost: the device went away; the same call goes on. EdgeqError: nothing is within the budget, or everything is.
    """
    wanted = _wanted(budget_ms, budget_instructions, max_drop, budget_bytes, metric, lower_is_better, rounds)
    made = as_task(task, None, None, None)
    where = Path(output or made.name).absolute()
    check_replaceable(where)
    folder = where.with_name(where.name + FOLDER)
    names = tuple(dict.fromkeys(precision(name).name for name in precisions)) or _offered(to)
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    bench = Bench(
        made, to, recipe=recipe, settings=settings, data=data, keep_float=keep_float, output=where,
        lower=lower_is_better, progress=progress,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with open_device(device) as opened:
        place = Place(opened)
        _refuse_place(place, to, budget_ms, budget_instructions)
        trials = Trials(bench, bench.space(names), place, How(threads, runs=runs, cores=tuple(cores)), folder, progress)
        told = _searched(bench, trials, wanted, sensitivity, progress)
    return _written({"model": made.name, "backend": to, "device": device, **told}, folder)


def _written(told: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write search.json and the page."""
    write_json(folder / "search.json", told)
    with contextlib.suppress(EdgeqError):  # without jinja2 there is no page
        told["page"] = str(write_search(told, folder / "search.html"))
    return told


def _searched(bench: Bench, trials: Trials, wanted: Wanted, sensitivity: str, progress: Progress) -> dict[str, Any]:
    """Search, write the front's plans, save and export the winner; all that is told."""
    folder, space = trials.folder, trials.space
    loop = Search(space, trials, harms(bench, space, sensitivity, wanted.metric, folder, progress), wanted, progress)
    outcome, space = loop.run(), loop.space  # without the precisions that did not lower
    told = told_of(outcome, space, wanted, trials.made, _plans(outcome, space, folder))
    return {**told, **_exported(bench, space, outcome, folder.with_name(folder.name.removesuffix(FOLDER)), progress)}


def _exported(bench: Bench, space: Space, outcome: Outcome, where: Path, progress: Progress) -> dict[str, Any]:
    """Save the winner and export it; where it lies, and whether it is the artefact that was measured."""
    model = bench.model(space.plan(outcome.best.choice))
    model.save(where, backends.versions())
    if bench.to == "simulated":
        return {"artifact": None, "same_artifact": None}
    artifact = export(model, bench.to, progress=progress)
    return {"artifact": str(artifact.path), "same_artifact": digest(artifact.path) == outcome.best.digest}


def _wanted(
    ms: float | None,
    instructions: int | None,
    drop: float | None,
    size: int | None,
    metric: str | None,
    lower: bool,
    rounds: int,
) -> Wanted:
    """What is asked for.

    Raises:
        EdgeqError: nothing is, or a number that none can be.
    """
    given = {"--budget-ms": ms, "--budget-instructions": instructions, "--max-drop": drop, "--budget-bytes": size}
    if all(value is None for value in given.values()):
        raise EdgeqError("a search needs something to stay within: --budget-ms, --budget-bytes or --max-drop")
    for name, value in given.items():
        if value is not None and not (math.isfinite(value) and (value > 0 or (name == "--max-drop" and value == 0))):
            raise EdgeqError(f"{name} {value:g}: give a number above 0")
    if ms is not None and instructions is not None:
        raise EdgeqError(
            "--budget-ms and --budget-instructions: a device has one of them; give the one that it measures"
        )
    if rounds < 1:
        raise EdgeqError(f"--rounds {rounds}: give at least 1")
    return Wanted(ms if ms is not None else instructions, drop, size, metric, lower, rounds)


def _offered(to: str) -> tuple[str, ...]:
    """The precisions of a runtime that every layer can have, or weights alone, or floats."""
    target = backends.target(to if to == "simulated" else backends.runtime_of(to))
    if to == "simulated":
        return ("w8a8", "w6a8", "w4a8", "w3a8", FLOAT)
    weights = ("w8",) if target.weight_only else ()
    return ("w8a8", *weights, *(name for name in reversed(target.floats)))


def _refuse_place(place: Place, to: str, ms: float | None, instructions: int | None) -> None:
    """Refuse a device that does not run the artefacts, or a budget in a unit that it does not measure."""
    if to != "simulated" and (lacks := place.lacks(to)):
        raise EdgeqError(lacks)
    if to == "simulated" and (ms is not None or instructions is not None):
        raise EdgeqError("nothing runs the simulated target: give --budget-bytes or --max-drop")
    if ms is not None and place.info.emulated:
        raise EdgeqError(
            f"{place.name} is emulated: it counts instructions, and its times mean nothing; give --budget-instructions"
        )
    if instructions is not None and not place.info.emulated:
        raise EdgeqError(f"{place.name} measures time: give --budget-ms")


def _plans(outcome: Outcome, space: Space, folder: Path) -> dict[int, str]:
    """Write the plan file of each point of the front; returns their names by place."""
    where = folder / "plans"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    names = {}
    for index, trial in enumerate(outcome.front):
        names[index] = f"plans/{index:02d}.json"
        (folder / names[index]).write_text(dump_plan(space.plan(trial.choice)), encoding="utf-8")
    return names
