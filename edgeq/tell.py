"""What a model, an artefact and this machine are, as plain data."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgeq import backends, devices
from edgeq.calib import written
from edgeq.calib.recipes import RECIPES
from edgeq.devices import Found
from edgeq.graph.package import QuantizedModel
from edgeq.run.coverage import coverage_json, program_counts
from edgeq.run.files import sizes
from edgeq.spec import Artifact, OpSupport, Target


def summary(model: QuantizedModel) -> dict[str, Any]:
    """What quantize made, as plain data."""
    return {
        "model": model.name,
        "folder": str(model.folder) if model.folder else None,
        "target": model.plan.target,
        "recipe": model.plan.recipe,
        "data": model.data,
        **program_counts(model),
        "tensors": len(model.qparams),
        "islands": model.islands,
        "island_operators": {key: model.operators[key] for key in model.islands if key in model.operators},
        "far": list(model.far),
    }


def coverage(artifact: Artifact, model: QuantizedModel) -> dict[str, Any]:
    """What a runtime does with each operator of an artefact of `model`, and its size beside float's, as plain data."""
    return {
        "artifact": str(artifact.path),
        **coverage_json(artifact, model),
        **sizes(artifact, model),
        "rows": [dataclasses.asdict(row) for row in artifact.coverage],
        "notes": list(artifact.notes),
    }


def doctor() -> dict[str, Any]:
    """Backends, devices, targets and recipes, and how to get what is missing; imports no converter."""
    engines = {}
    for name, runtime in backends.RUNTIMES.items():
        there = backends.installed(name)
        engines[name] = {
            "installed": there,
            "version": backends.versions().get(runtime.runner or runtime.package),
            "install": f"pip install 'edgeq[{name}]'",
            "runs_here": backends.runs_here(name) if there else "not installed",
        }
    names = ("portable", *backends.RUNTIMES)
    return {
        "versions": backends.versions(),
        "backends": engines,
        "devices": {row.name: device_json(row) for row in devices.found()},
        "targets": {name: target_table(backends.target(name)) for name in names},
        "recipes": {name: r.summary for name, r in RECIPES.items()},
    }


def recipes(name: str | None = None) -> dict[str, Any]:
    """Every recipe as plain data: what it does, needs and costs, its steps; or one alone, which may be a .toml file."""
    chosen = RECIPES if name is None else {name: written.chosen(name)}
    return {key: {**written.described(recipe), "toml": written.toml(recipe)} for key, recipe in chosen.items()}


def device_json(row: Found) -> dict[str, Any]:
    """A device, or a kind of device, as plain data; what it is only where it is reachable."""
    described = dataclasses.asdict(row.info) if row.info is not None else {}
    described.pop("name", None)
    return {"reachable": row.info is not None, "can": row.can, "how": row.how, **described}


def target_table(target: Target) -> dict[str, Any]:
    """A target's operators as plain data: what it computes, fuses and insists on."""
    return {
        "floats": list(target.floats),
        "weight_only": list(target.weight_only),
        "arithmetic": target.arithmetic,
        "ops": [_row(row) for row in target.ops],
    }


def _row(row: OpSupport) -> dict[str, Any]:
    told = dataclasses.asdict(row)
    told.pop("pairs")
    return told | {"precisions": list(row.precisions)}
