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
from edgeq.search.harm import alone
from edgeq.search.loop import Outcome, Search, Wanted, prediction, repeatability
from edgeq.search.space import FLOAT, Space
from edgeq.search.trial import How, Trial, Trials
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
        made, to, recipe=recipe, settings=settings, data=data, keep_float=keep_float, output=where, progress=progress
    )
    space = bench.space(names)
    folder.mkdir(parents=True, exist_ok=True)
    with open_device(device) as opened:
        place = Place(opened)
        _refuse_unit(place, wanted, budget_ms, budget_instructions)
        trials = Trials(bench, space, place, How(threads, runs=runs, cores=tuple(cores)), folder, progress)
        harms = alone(bench, space, folder, progress)
        loop = Search(space, trials, harms, wanted, progress)
        outcome, space = loop.run(), loop.space  # without the precisions that did not lower
    plans = _plans(outcome, space, folder)
    told = _found(outcome, space, wanted, trials.made, made.name, to, device, plans)
    model = bench.model(space.plan(outcome.best.choice))
    model.save(where, backends.versions())
    if to != "simulated":
        artifact = export(model, to, progress=progress)
        told["artifact"] = str(artifact.path)
        told["same_artifact"] = digest(artifact.path) == outcome.best.digest
    write_json(folder / "search.json", told)
    with contextlib.suppress(EdgeqError):  # without jinja2 there is no page
        told["page"] = str(write_search(told, folder / "search.html"))
    return told


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


def _refuse_unit(place: Place, wanted: Wanted, ms: float | None, instructions: int | None) -> None:
    """Refuse a budget in a unit that the device does not measure."""
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


def _found(
    outcome: Outcome, space: Space, wanted: Wanted, made: int, name: str, to: str, device: str, plans: dict[int, str]
) -> dict[str, Any]:
    """An outcome as plain data; docs/json.md describes it."""
    best, metric = outcome.best, wanted.metric or next(iter(outcome.best.metric or {}), None)
    floating, int8 = outcome.uniform.get(FLOAT), outcome.uniform.get("w8a8")

    def point(trial: Trial | None) -> dict[str, Any]:
        if trial is None:
            return dict.fromkeys(("ms", "metric"))
        return {
            "ms": trial.latency_ms,
            "metric": None if trial.metric is None or metric is None else trial.metric[metric],
        }

    front = [
        {
            "latency_ms": trial.latency_ms, "metric": point(trial)["metric"], "sqnr_db": _decibel(trial.noise),
            "size_bytes": trial.size_bytes, "instructions": trial.instructions, "p10_ms": trial.p10_ms, "p90_ms": trial.p90_ms,
            "predicted": trial.predicted, "layers": _counted(trial, space), "plan": plans[index], "best": trial == best,
        }
        for index, trial in enumerate(outcome.front)
    ]  # fmt: skip
    return {
        "model": name,
        "backend": to,
        "device": device,
        "budget_ms": wanted.budget if best.instructions is None else None,
        "budget_instructions": wanted.budget if best.instructions is not None else None,
        "budget_bytes": wanted.size,
        "max_drop": wanted.drop,
        "metric_name": metric,
        "measured_ms": best.latency_ms,
        "measured_again": outcome.repeated,
        "float_ms": point(floating)["ms"],
        "int8_ms": point(int8)["ms"],
        "metric": point(best)["metric"],
        "float_metric": point(floating)["metric"],
        "int8_metric": point(int8)["metric"],
        "sqnr_db": _decibel(best.noise),
        "int8_sqnr_db": _decibel(int8.noise) if int8 is not None else None,
        "size_bytes": best.size_bytes,
        "instructions": best.instructions,
        "precisions": list(space.precisions),
        "units": [
            {
                "name": unit.name, "layers": list(unit.layers), "precision": best.choice[unit.name], "macs": unit.macs,
                **_costs(outcome, unit.name, tuple(unit.plans)),
            }
            for unit in space.units
        ],
        "front": front,
        "trials": [
            {"cost": t.cost, "predicted": t.predicted, "deviation": t.deviation, **point(t), "sqnr_db": _decibel(t.noise),
             "size_bytes": t.size_bytes, "layers": _counted(t, space), "seconds": t.seconds}
            for t in outcome.trials
        ],
        "stable": outcome.stable,
        "measurements": made,
        "prediction_error": prediction(outcome),
        "repeatability": repeatability(outcome),
    }  # fmt: skip


def _costs(outcome: Outcome, unit: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What a unit is believed to take and to hurt in each precision."""
    costs = outcome.costs.linear().units if outcome.costs is not None else {}
    return {
        "cost": {name: costs.get((unit, name)) for name in names},
        "harm": {name: outcome.harm.units.get((unit, name)) for name in names},
    }


def _counted(trial: Trial, space: Space) -> dict[str, int]:
    """How many layers, those that a unit counts, have which precision."""
    found = dict.fromkeys(space.precisions, 0)
    for unit in space.units:
        found[trial.choice[unit.name]] += 1
    return found


def _decibel(noise: float) -> float | None:
    """The outputs' power over that of their error; None where there is no error."""
    return -10 * math.log10(noise) if noise > 0 else None
