"""The verbs as Python: quantize, export, verify, profile, report. The command line calls these and nothing else."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeq import backends
from edgeq.assembly import (
    LOOKED_AT,
    as_task,
    assemble,
    capture_task,
    confirmed,
    plan_of,
    refuse_types,
    remembered,
    silent,
    supplied,
)
from edgeq.calib import written
from edgeq.calib.calibrate import calibrate
from edgeq.calib.unlike import sentences
from edgeq.calib.workspace import forget
from edgeq.devices import open_device
from edgeq.given import home_of, inputs_of, merge, named, options_of, result_name, runnable, saved
from edgeq.graph.annotate import annotate, named_layers
from edgeq.graph.capture import Captured, leaves_like
from edgeq.graph.package import QuantizedModel, load_plan
from edgeq.graph.rules import refuse_beyond
from edgeq.graph.store import check_replaceable, exports, write_json
from edgeq.run.agree import agree
from edgeq.run.compare import compare as compare_profiles
from edgeq.run.condition import conditions, holding
from edgeq.run.count import count as count_instructions
from edgeq.run.count import counts_json
from edgeq.run.count import kept as keep_counts
from edgeq.run.coverage import coverage_json, tabled
from edgeq.run.curves import noted
from edgeq.run.diff import diff as diff_folders
from edgeq.run.distance import far
from edgeq.run.each import each, succeeded
from edgeq.run.files import exported, find, put, size
from edgeq.run.half import beyond_half
from edgeq.run.kept import Kept, digest, slug
from edgeq.run.metric import evaluate, float_metric
from edgeq.run.place import Place
from edgeq.run.profile import kept as keep_pair
from edgeq.run.profile import pair_json
from edgeq.run.profile import profile as profile_artifact
from edgeq.run.source import task_of
from edgeq.run.supervised import lowering
from edgeq.run.trace import chrome_trace
from edgeq.run.trial import run_once
from edgeq.run.verify import Parity, first_parting, parity_json
from edgeq.run.verify import verify as verify_artifact
from edgeq.spec import Artifact, EdgeqError, EdgeqWarning, Progress, QuantPlan, Recipe
from edgeq.task import Predict, Task, hook
from edgeq.tell import coverage, device_json, doctor, recipes, summary

__all__ = [
    "assemble",
    "capture_task",
    "compare",
    "coverage",
    "device_json",
    "diff",
    "doctor",
    "export",
    "profile",
    "quantize",
    "recipes",
    "report",
    "silent",
    "summary",
    "verify",
]


def quantize(
    task: Task | str | Path | nn.Module | ExportedProgram,
    *,
    example_inputs: Any = None,
    calibration: Iterable[Any] | None = None,
    evaluate: Callable[[Predict], dict[str, float]] | None = None,
    data: str | Path | None = None,
    keep_float: Sequence[str] = (),
    recipe: str | Path | Recipe = "default",
    settings: Sequence[str] = (),
    target: str = "portable",
    precision: str = "w8a8",
    plan: QuantPlan | str | Path | None = None,
    output: str | Path | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """One QDQ program for every runtime: capture, plan, calibrate and convert.

    task: a task, its file, or a network, which `example_inputs`, `calibration` and `evaluate` then belong to.
    data: in the place of calibration: .npy or .npz files (edgeq.calib.data.arrays), or a source that makes batches up
        (edgeq.calib.data.sources), as "zeroq", with options among settings, as "data.seed=1".
    keep_float: patterns of layer keys or module paths, as "head" (and all in it) or "*.norm*", that stay in float.
    recipe: a name, a .toml file or a Recipe; settings: options of its steps, as "round.solver=gptq".
    A plan overrides target and recipe; a layer that it does not name gets its default, else `precision`.
    calibration may be left out where nothing is learned from data: precision "w8" or "fp32" with most recipes.
    With `output` the model is saved there, and what was exported and verified of an older one is removed, as `progress` says; a
    recipe that learns keeps what it has finished in `<output>.partial`, and the same call goes on after an interruption.

    Raises:
        EdgeqError: what is wrong with the task, its data, the plan, or which operator stands in the way.
    """
    refuse_types(target=target, recipe=recipe, precision=precision, plan=plan, output=output, data=data)
    where = Path(output).absolute() if output is not None else None  # a task file may change the current folder
    recipe = recipe.absolute() if isinstance(recipe, Path) else recipe
    given = load_plan(Path(plan)) if isinstance(plan, (str, Path)) else plan
    supply, settings = supplied(data, settings, given)
    task = as_task(task, example_inputs, calibration, evaluate, supply.arrays)
    method = written.chosen(recipe) if given is None else written.planned(given, str(plan))
    method = written.changed(method, settings)
    chosen = backends.target(target if given is None else given.target)
    if where is not None:
        check_replaceable(where)
    progress("capture", 0, None)
    captured, batches = confirmed(task, supply.maker(where, progress))
    planned = plan_of(captured, chosen, method, precision, given, keep_float, supply.told)
    looked_at: list[Any] = []
    stream = None if batches is None else remembered(batches, looked_at)
    again = partial(annotate, captured, chosen, planned)
    annotation, resolved = calibrate(
        captured, again(), method, stream, progress,
        hook=partial(hook, task), output=where, again=again, settled=named_layers(planned, given),
    )  # fmt: skip
    planned = dataclasses.replace(planned, layers={**planned.layers, **dict.fromkeys(annotation.kept, "fp32")})
    progress("convert", 0, None)
    model = assemble(task, captured, annotation, resolved, planned)
    model.data, model.distilled = supply.origin(task), tuple(supply.distilled)
    list(itertools.islice(stream or (), LOOKED_AT - len(looked_at)))  # what no step has read
    for sentence in (*sentences(annotation), *_looked(model, captured, looked_at)):
        warnings.warn(sentence, EdgeqWarning, stacklevel=2)
    return model if where is None else _save(model, where, progress)


def _looked(model: QuantizedModel, captured: Captured, batches: list[Any]) -> tuple[str, ...]:
    """Sentences about what the program makes of the first calibration batches; those about its outputs stay with the model."""
    flat = [leaves_like(captured.nested, raw, "calibration batch") for raw in batches] or [captured.example]
    model.far = tuple(far(model, flat, captured.module))
    return (*model.far, *beyond_half(model, flat[0]))


def _save(model: QuantizedModel, where: Path, progress: Progress) -> QuantizedModel:
    """Save a model that was just made; what a calibration kept, and what was exported of an older one, is no longer of use."""
    older = exports(where)
    model.save(where, backends.versions())
    forget(where)
    if older:
        progress(f"removed what belonged to the older program: {', '.join(older)}", 1, 1)
    return model


def export(
    model: QuantizedModel | str | Path,
    to: str,
    *,
    folder: str | Path | None = None,
    float_twin: bool = False,
    io: str | None = None,
    channels_last: bool | None = None,
    tune: int = 0,
    progress: Progress = silent,
) -> Artifact:
    """Lower `model` to backend `to`; writes into `folder`, else into `<model folder>/<backend>/`.

    The artefact is loaded and run once in a process of its own, where it is for this machine; what does not run is removed.

    tune: schedules to time on this host for each float kernel (TVM; 0: none), those of the float twin too, so that int8 is
        compared with a float at its best. What was found lies beside the artefact and serves every later export.
    io: inputs and outputs of a .tflite: "int8" (the default), "uint8" (the same integers plus 128, for apps that hold
        bytes) or "float"; the other runtimes take floats.
    channels_last: whether the image among a .tflite's inputs has its channels last, as pixels lie and MediaPipe wants them;
        None: with io "uint8", where PREPROCESSING says that it is an image.
    float_twin: lower the float network instead, as `float.<ext>`, to time int8 beside it.

    Raises:
        EdgeqError: the backend is unknown or not installed, the plan's precision is beyond it, or an operator is; or its
            runtime cannot run what was made.
    """
    model = saved(model)
    if not isinstance(to, str):
        raise EdgeqError(f"to is a {type(to).__name__}: export to one backend at a time")
    engine = backends.backend(to)
    options = options_of(model, to, io=io, channels_last=channels_last, tune=tune, float_twin=float_twin)
    refuse_beyond(model.integers, model.said, engine.target, to)
    where = Path(folder) if folder is not None else home_of(model) / to
    where.mkdir(parents=True, exist_ok=True)
    program, labels = (model.twin, model.twin_labels) if float_twin else (model.program, model.labels)
    name = "float" if float_twin else "model"
    if tune and engine.tune is not None:
        for each, keys in ((model.program, model.labels), (model.twin, model.twin_labels)):
            engine.tune(each, where, trials=tune, layers=keys, progress=progress)
        if not float_twin:
            export(model, to, folder=folder, float_twin=True)
    with lowering(to):
        artifact = engine.lower(program, where, name=name, layers=labels, **options)
    artifact = artifact if float_twin else tabled(artifact, model, engine.target)
    try:
        run_once(artifact, model.golden)
    except EdgeqError:
        _remove(artifact.path)
        (where / f"{name}.json").unlink(missing_ok=True)
        raise
    artifact = artifact if float_twin else noted(artifact, model)
    put(artifact, model, name)
    return artifact


def verify(
    model: QuantizedModel | str | Path,
    *,
    to: Sequence[str] = (),
    device: str = "host",
    batches: int = 8,
    layers: bool = False,
    threads: int = 1,
    task: str | Path | None = None,
    fail_if: Sequence[str] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Run every artefact of `model` (or those of `to`) on `device` against its runtime's simulation.

    model: or its folder, or one exported file in that.
    Without `to`, artefacts that do not run there are left out and named in `skipped`. Inputs are the first `batches`
    calibration batches of `task`, a task file, else of the one that was quantized where it is still the same, else the
    synthetic golden vector. The task's metric is computed on the host alone. Returns plain data and writes it to
    verify.json (`verify.<device>.json` for others), see docs/json.md. After an interruption the same call goes on behind the
    last finished backend. Of several backends, one that fails has `{"error": sentence}` in its row, and the others go on.
    fail_if: conditions as `max_lsb>1`, their names checked before any artefact runs; `failing` says which hold for whom.

    Raises:
        DeviceLost: the device went away. EdgeqError: nothing was exported, an artefact is truncated or does not run there.
    """
    model, to = named(model, to)
    source_of = task_of(model, task)
    measured = source_of is not None and source_of.evaluate is not None and device == "host"
    failing_if = conditions(fail_if, "verify", None if measured else ())
    with open_device(device) as opened:
        place = Place(opened)
        chosen, skipped = runnable(model, to, place)
        inputs, source = inputs_of(model, source_of, batches)
        found: dict[str, Any] = {
            "model": model.name,
            "device": device,
            "versions": backends.versions(),
            "inputs": source,
            "batches": len(inputs),
            "float_metric": float_metric(source_of, model) if source_of and place.device is None else None,
            "qdq_metric": evaluate(source_of, model.qdq) if source_of and place.device is None else None,
            "far": list(model.far if source == "golden" else far(model, inputs[:LOOKED_AT])),
            "backends": {},
            "skipped": skipped,
        }
        conditions(fail_if, "verify", found["float_metric"] or ())  # before any artefact runs
        kept = Kept(home_of(model) / f"verify.{slug(device)}.partial")
        how = {"place": place, "task": source_of, "threads": threads, "progress": progress}
        parts = [source_of.path if source_of else None, *(x.numpy().tobytes() for batch in inputs for x in batch)]

        def row(name: str) -> dict[str, Any]:
            artifact = find(model, name)
            agree(model, artifact)
            known = digest(artifact.path, layers, threads, backends.versions(), *parts)
            return kept.once(name, known, lambda: _verified(model, artifact, inputs, layers, **how))

        found["backends"] = each(chosen, "verify", row)
    merge(home_of(model) / result_name("verify", device), found)
    kept.forget()
    return {**found, "failing": holding(failing_if, found["backends"])}


def profile(
    model: QuantizedModel | str | Path,
    *,
    to: Sequence[str] = (),
    device: str = "host",
    threads: int = 1,
    warmup: int = 5,
    runs: int = 30,
    cores: Sequence[int] = (),
    trace: str | Path | None = None,
    fail_if: Sequence[str] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """Time every artefact of `model` (or those of `to`) on `device`, the float network beside it.

    model: or its folder, or one exported file in that.
    Milliseconds: median, 10th and 90th percentile over `runs` after `warmup`, and rows that add up to the median; on an
    emulated device instructions instead, and no time at all. Returns plain data and writes it to profile.json
    (`profile.<device>.json` for others); each report of times is kept among the measurements (edgeq.run.measurements).
    cores: of the device, to run on. trace: file to write the same to in Chrome's trace format. After an interruption the
    same call goes on behind the last finished backend. Of several backends, one that fails has its error in its row.
    fail_if: see `verify`, as `p90_ms>20`.

    Raises:
        DeviceLost: the device went away. EdgeqError: see `verify`.
    """
    failing_if = conditions(fail_if, "profile")
    model, to = named(model, to)
    trace = Path(trace).absolute() if trace is not None else None
    if cores and device == "host":
        raise EdgeqError("this process is not bound to cores: start it as taskset -c 0,1 edgeq profile …")
    with open_device(device) as opened:
        place = Place(opened)
        if trace is not None and place.info.emulated:
            raise EdgeqError(f"{device} is emulated: it has instruction counts, and no times to trace")
        chosen, skipped = runnable(model, to, place)
        found: dict[str, Any] = {
            "model": model.name,
            "device": device,
            "versions": backends.versions(),
            "backends": {},
            "skipped": skipped,
            "notes": [],
        }
        kept = Kept(home_of(model) / f"profile.{slug(device)}.partial")
        how, notes = (threads, warmup, runs, tuple(cores)), found["notes"]

        def row(name: str) -> dict[str, Any]:
            int8, twin = find(model, name), _twin(model, name, place, notes, progress)
            known = digest(int8.path, twin.path if twin else None, *how, backends.versions())
            return kept.once(name, known, lambda: _measured(model, (int8, twin), place, *how, notes, progress))

        found["backends"] = each(chosen, "profile", row)
    merge(home_of(model) / result_name("profile", device), found)
    kept.forget()
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        write_json(trace, chrome_trace({**found, "backends": succeeded(found["backends"])}))
    return {**found, "failing": holding(failing_if, found["backends"])}


def compare(a: str | Path, b: str | Path) -> dict[str, Any]:
    """Two profiles side by side, with a verdict as far as the noise allows one; its shape is described in docs/json.md.

    a, b: a model folder, a file that `edgeq profile --json` printed, or the number of a kept measurement; `:BACKEND` behind
    it picks one runtime.

    Raises:
        EdgeqError: there is no such profile, or the two have no runtime in common.
    """
    return compare_profiles(str(a), str(b))


def diff(old: str | Path, new: str | Path) -> dict[str, Any]:
    """What changed from model folder `old` to `new`, and which of it is a regression; see edgeq.run.diff.

    Raises:
        EdgeqError: one of them is no folder that `quantize` wrote.
    """
    return diff_folders(old, new)


def report(
    model: QuantizedModel | str | Path, *, output: str | Path | None = None, task: str | Path | None = None
) -> Path:
    """Write one self-contained HTML page about a model folder; returns its path (report.html in the folder).

    task: the task file whose first calibration batch the statistics are of; see `verify`.
    """
    from edgeq.pages.page import write_page

    model = saved(model)
    return write_page(model, Path(output).absolute() if output else home_of(model) / "report.html", task)


def _twin(model: QuantizedModel, name: str, place: Place, notes: list[str], progress: Progress) -> Artifact | None:
    """The float artefact beside the int8 one, made where it is missing; None, and a note, where it cannot be had.

    One that an interruption left half recorded, or that was changed since, is made again.
    """
    if name in exported(model, "float", elsewhere=True):
        with contextlib.suppress(EdgeqError):
            return find(model, name, "float")
    if place.device is None and backends.runs_here(name) != "yes":
        return None
    progress(f"export float twin for {name}", 0, None)
    try:
        return export(model, name, float_twin=True)
    except EdgeqError as error:
        if place.device is None:
            raise
        notes.append(f"{name} has no float twin to compare with: {error}")
        return None


def _measured(
    model: QuantizedModel,
    artifacts: tuple[Artifact, Artifact | None],
    place: Place,
    threads: int,
    warmup: int,
    runs: int,
    cores: tuple[int, ...],
    notes: list[str],
    progress: Progress,
) -> dict[str, Any]:
    """Times at `place`, or instructions where it is emulated, kept among the measurements; as plain data, with the counts."""
    about = {**coverage_json(artifacts[0], model), "size_bytes": size(artifacts[0].path)}
    unkept = f"{artifacts[0].backend} was measured, but is not kept"
    if place.info.emulated:
        counts = count_instructions(place, *artifacts, model.golden, threads=threads, progress=progress)
        try:
            keep_counts(counts, model, artifacts, place.info)
        except EdgeqError as error:
            notes.append(f"{unkept}: {error}")
        return counts_json(counts) | about
    pair = profile_artifact(
        *artifacts,
        model.golden,
        place=place,
        threads=threads,
        warmup=warmup,
        runs=runs,
        cores=cores,
        progress=progress,
    )
    try:
        pair = keep_pair(pair, model, artifacts, place.info)
    except EdgeqError as error:
        notes.append(f"{unkept}: {error}")
    return pair_json(pair) | about


def _verified(
    model: QuantizedModel, artifact: Artifact, inputs: Sequence[tuple[Tensor, ...]], layers: bool, **how: Any
) -> dict[str, Any]:
    """An artefact against its simulation, as plain data; layers: where it parts from it, too. how: as edgeq.run.verify.verify."""
    parity = verify_artifact(model, artifact, inputs, **how)
    made = parity_json(parity, artifact, model)
    if layers and parity.max_lsb > 0:
        made["first_parting"] = _parting(model, artifact.backend, inputs[0], parity, how["place"], how["progress"])
    return made


def _parting(
    model: QuantizedModel, name: str, batch: Sequence[Tensor], parity: Parity, place: Place, progress: Progress
) -> dict[str, Any] | None:
    """Where the worst kernel set first leaves its simulation, as plain data."""
    worst = max(parity.kernels, key=lambda k: k.max_lsb)
    kernels = "" if worst.kernels == "default" else worst.kernels
    parting = first_parting(model, name, batch, place=place, kernels=kernels, progress=progress)
    return dataclasses.asdict(parting) if parting else None


def _remove(path: Path) -> None:
    """An artefact that its runtime cannot run, a file or a package."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
