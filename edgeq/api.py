"""The verbs as Python: quantize, export, verify, profile, report. The command line calls these and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgeq import backends
from edgeq.calib.calibrate import Progress, calibrate
from edgeq.calib.recipes import recipe as find_recipe
from edgeq.graph.annotate import Annotation, annotate, default_plan
from edgeq.graph.capture import Captured, capture
from edgeq.graph.convert import Resolved, convert, float_program
from edgeq.graph.package import QuantizedModel, load, load_plan, write_json
from edgeq.run.files import artifact_json
from edgeq.spec import Artifact, EdgeqError, QParams, QuantPlan
from edgeq.task import Task, load_task


def silent(stage: str, done: int, total: int | None) -> None:
    """Report no progress."""


def quantize(
    task: Task | str | Path,
    *,
    recipe: str = "default",
    target: str = "portable",
    precision: str = "w8a8",
    plan: QuantPlan | str | Path | None = None,
    output: str | Path | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """Capture, plan, calibrate and convert: one QDQ program for every runtime.

    A plan overrides target, recipe and precision. With `output` the model is saved there.

    Raises:
        EdgeqError: what is wrong with the task, its data, the plan, or which operator stands in the way.
    """
    task = task if isinstance(task, Task) else load_task(task)
    given = load_plan(Path(plan)) if isinstance(plan, (str, Path)) else plan
    if given is not None:
        target, recipe = given.target, given.recipe
    chosen, method = backends.target(target), find_recipe(recipe)
    if task.calibration is None:
        raise EdgeqError(f"{task.name}: the task has no calibration(), and recipe {recipe!r} needs calibration batches")
    captured = capture_task(task, progress)
    followed = given or default_plan(captured, chosen, recipe, precision)
    annotation = annotate(captured, chosen, followed)
    resolved = calibrate(captured, annotation, method, _calibration(task), progress)
    progress("convert", 0, None)
    model = assemble(task, captured, annotation, resolved, followed)
    if output is not None:
        model.save(Path(output))
    return model


def capture_task(task: Task, progress: Progress = silent) -> Captured:
    """The task's network as a graph."""
    progress("capture", 0, None)
    example = task.example_inputs()
    return capture(task.model(), example if isinstance(example, tuple) else (example,))


def assemble(
    task: Task, captured: Captured, annotation: Annotation, resolved: Resolved, plan: QuantPlan
) -> QuantizedModel:
    """Convert and gather everything that is saved."""
    program, labels = convert(captured, annotation, resolved)
    twin, twin_labels = float_program(captured)
    of = {node: resolved.activations[annotation.tensors.find(node)] for node in annotation.tensors.parent}
    names = {g.output: g.key for g in annotation.groups}
    placeholders = [n for n in captured.module.graph.nodes if n.op == "placeholder"]
    results = captured.module.graph.output_node().args[0]
    made = set(names)
    inputs = tuple(
        dataclasses.replace(info, qparams=of.get(n)) for info, n in zip(captured.inputs, placeholders, strict=True)
    )
    outputs = tuple(
        dataclasses.replace(info, qparams=of[n] if n in made else None)
        for info, n in zip(captured.outputs, results, strict=True)  # type: ignore[arg-type] # a tuple of nodes
    )
    return QuantizedModel(
        name=task.name,
        plan=plan,
        program=program,
        twin=twin,
        inputs=inputs,
        outputs=outputs,
        qparams={_tensor_key(n, names, captured): q for n, q in of.items()},
        labels=labels,
        twin_labels=twin_labels,
        islands=annotation.islands,
        golden=_golden(captured, of, placeholders),
        task=str(task.path) if task.path else None,
        preprocessing=task.preprocessing,
    )


def export(
    model: QuantizedModel | str | Path, to: str, *, folder: str | Path | None = None, float_twin: bool = False
) -> Artifact:
    """Lower `model` to backend `to`; writes into `folder`, else into `<model folder>/<backend>/`.

    float_twin: lower the float network instead, as `float.<ext>`, to time int8 beside it.

    Raises:
        EdgeqError: the backend is unknown or not installed, the plan's precision is beyond it, or an operator is.
    """
    model = model if isinstance(model, QuantizedModel) else load(model)
    engine = backends.backend(to)
    if not backends.installed(to):
        package = backends.RUNTIMES[to][1]
        raise EdgeqError(f"backend {to} needs {package}, which is not installed: pip install 'edgeq[{to}]'")
    refuse_beyond(model, to)
    where = Path(folder) if folder is not None else _home(model) / to
    where.mkdir(parents=True, exist_ok=True)
    program, labels = (model.twin, model.twin_labels) if float_twin else (model.program, model.labels)
    name = "float" if float_twin else "model"
    artifact = engine.lower(program, where, name=name, layers=labels)
    write_json(where / f"{name}.json", artifact_json(artifact, model))
    return artifact


def refuse_beyond(model: QuantizedModel, to: str) -> None:
    """Raise EdgeqError where the plan asks for what runtime `to` cannot compute."""
    engine = backends.backend(to).target
    for key, name in model.plan.layers.items():
        if key in model.islands or name == "fp32":
            continue
        kind = key.rsplit("/", 1)[-1].split("#")[0]
        row = engine.support(kind)
        fine = (
            name in engine.floats
            or (name == "w8" and kind in engine.weight_only)
            or (row is not None and name in row.precisions)
        )
        if not fine:
            raise EdgeqError(
                f"{to} cannot compute layer {key!r} in {name}: its kernels take "
                f"{', '.join(row.precisions) if row else 'this operator in float only'}; "
                f"quantize with --target {to} or portable, or change the layer in plan.json"
            )


def _calibration(task: Task) -> Iterable[Any]:
    assert task.calibration is not None
    return task.calibration()


def _home(model: QuantizedModel) -> Path:
    if model.folder is None:
        raise EdgeqError("the model is not saved yet: call model.save(folder) first, or name a folder to export to")
    return model.folder


def _tensor_key(node: Node, names: dict[Node, str], captured: Captured) -> str:
    if node in names:
        return names[node]
    return captured.keys.get(node.name, f"input {node.name}")


def _golden(captured: Captured, of: dict[Node, QParams], placeholders: list[Node]) -> tuple[Tensor, ...]:
    """Synthetic inputs from a fixed seed: uniform over the calibrated range, or over the example's integers."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for node, example in zip(placeholders, captured.example, strict=True):
        if not example.is_floating_point():
            top = max(int(example.max()), 1)
            made.append(torch.randint(0, top + 1, example.shape, generator=generator).to(example.dtype))
            continue
        q = of.get(node)
        low, high = (-1.0, 1.0) if q is None else tuple(q.scale[0] * (e - q.zero_point[0]) for e in (q.qmin, q.qmax))
        made.append(torch.rand(example.shape, generator=generator) * (high - low) + low)
    return tuple(made)
