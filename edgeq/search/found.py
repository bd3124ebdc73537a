"""What a search found, as plain data."""

from __future__ import annotations

import math
from typing import Any

from edgeq.search.loop import Outcome, Wanted, prediction, repeatability
from edgeq.search.space import FLOAT, Space
from edgeq.search.trial import Trial


def told_of(outcome: Outcome, space: Space, wanted: Wanted, made: int, plans: dict[int, str]) -> dict[str, Any]:
    """An outcome as plain data, see docs/json.md. made: measurements. plans: the plan file of each point of the front."""
    best, metric = outcome.best, wanted.metric or next(iter(outcome.best.metric or {}), None)
    floating, int8 = outcome.uniform.get(FLOAT), outcome.uniform.get("w8a8")

    front = [
        {
            "latency_ms": trial.latency_ms, "metric": _point(trial, metric)["metric"], "sqnr_db": decibel(trial.noise),
            "size_bytes": trial.size_bytes, "instructions": trial.instructions, "p10_ms": trial.p10_ms, "p90_ms": trial.p90_ms,
            "predicted": trial.predicted, "layers": _counted(trial, space), "plan": plans[index], "best": trial == best,
        }
        for index, trial in enumerate(outcome.front)
    ]  # fmt: skip
    return {
        "budget_ms": wanted.budget if best.instructions is None else None,
        "budget_instructions": wanted.budget if best.instructions is not None else None,
        "budget_bytes": wanted.size,
        "max_drop": wanted.drop,
        "metric_name": metric,
        "measured_ms": best.latency_ms,
        "measured_again": outcome.repeated,
        "float_ms": _point(floating, metric)["ms"],
        "int8_ms": _point(int8, metric)["ms"],
        "metric": _point(best, metric)["metric"],
        "float_metric": _point(floating, metric)["metric"],
        "int8_metric": _point(int8, metric)["metric"],
        "sqnr_db": decibel(best.noise),
        "int8_sqnr_db": decibel(int8.noise) if int8 is not None else None,
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
        "trials": [{**_point(t, metric), **_trial(t, space)} for t in outcome.trials],
        "stable": outcome.stable,
        "measurements": made,
        "prediction_error": prediction(outcome),
        "repeatability": repeatability(outcome),
    }  # fmt: skip


def _point(trial: Trial | None, metric: str | None) -> dict[str, Any]:
    """Milliseconds and metric of a trial; None where there is none."""
    told = None if trial is None or trial.metric is None or metric is None else trial.metric[metric]
    return {"ms": None if trial is None else trial.latency_ms, "metric": told}


def _trial(trial: Trial, space: Space) -> dict[str, Any]:
    """What else is told of each trial."""
    return {
        "cost": trial.cost,
        "predicted": trial.predicted,
        "deviation": trial.deviation,
        "sqnr_db": decibel(trial.noise),
        "size_bytes": trial.size_bytes,
        "layers": _counted(trial, space),
        "seconds": trial.seconds,
    }


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


def decibel(noise: float) -> float | None:
    """The outputs' power over that of their error; None where there is no error."""
    return -10 * math.log10(noise) if noise > 0 else None
