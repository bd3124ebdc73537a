"""What a verb is given, and where its result goes: a model or its folder, batches to run on, backends, result files."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeq import backends
from edgeq.graph import package, store
from edgeq.graph.capture import leaves_like
from edgeq.graph.package import QuantizedModel
from edgeq.graph.store import keep_result, result
from edgeq.run.each import succeeded
from edgeq.run.files import exported, find
from edgeq.run.kept import slug
from edgeq.run.place import Place
from edgeq.spec import EdgeqError
from edgeq.task import Task, example
from edgeq.task import batches as data


def runnable(model: QuantizedModel, to: Sequence[str], place: Place) -> tuple[tuple[str, ...], dict[str, str]]:
    """Backends to run at `place`: those of `to`, else all exported ones that run there; and why the others do not.

    Raises:
        EdgeqError: nothing was exported, or nothing of it runs there.
    """
    there = tuple(to) or exported(model, elsewhere=place.device is not None)
    if not there:
        raise EdgeqError(
            f"{model.folder}: nothing exported yet; run edgeq export {model.folder} --to {next(iter(backends.RUNTIMES))} first"
        )
    lacking = {name: why for name in there if (why := place.lacks(name))}
    if (to and lacking) or len(lacking) == len(there):
        raise EdgeqError(next(iter(lacking.values())))
    return tuple(name for name in there if name not in lacking), lacking


def result_name(verb: str, device: str) -> str:
    """Name of the file with what a verb found on a device; the pages read the host's."""
    return f"{verb}.json" if device == "host" else f"{verb}.{slug(device)}.json"


def merge(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Write `found` with the backends measured earlier kept beside the new ones, and those that failed now left out; returns
    the new ones alone."""
    try:
        earlier = (result(path.parent, path.name) or {"backends": {}})["backends"]
    except EdgeqError:  # damaged: nothing of it is kept
        earlier = {}
    rows = {name: row for name, row in earlier.items() if name not in found["backends"]}
    keep_result(path.parent, path.name, {**found, "backends": {**rows, **succeeded(found["backends"])}})
    return found


def named(model: QuantizedModel | str | Path, to: Sequence[str]) -> tuple[QuantizedModel, Sequence[str]]:
    """The model and the backends that are meant: `to`, or the one whose exported file `model` names.

    Raises:
        EdgeqError: it names a file that no model folder holds, or another backend's than `to`.
    """
    if isinstance(model, QuantizedModel):
        return model, to
    path = Path(model).resolve()
    if not path.exists() or (path / store.MANIFEST).is_file():
        return package.load(model), to
    root = next((folder for folder in path.parents if (folder / store.MANIFEST).is_file()), None)
    if root is None:
        if path.is_file():
            raise EdgeqError(
                f"{model}: lies in no model folder; name the folder that edgeq quantize wrote, with --to BACKEND"
            )
        return package.load(model), to
    backend = path.relative_to(root).parts[0]
    if (
        backend not in (*backends.RUNTIMES, *backends.VARIANTS)
        or find(package.load(root), backend).path.resolve() != path
    ):
        raise EdgeqError(f"{model}: is not what was exported of {root}; name that folder, with --to BACKEND")
    if to and tuple(to) != (backend,):
        raise EdgeqError(f"{model}: was exported to {backend}, and --to says {', '.join(to)}; leave --to out")
    return package.load(root), (backend,)


def saved(model: QuantizedModel | str | Path) -> QuantizedModel:
    """The model, read where a folder is named."""
    return model if isinstance(model, QuantizedModel) else package.load(model)


def inputs_of(model: QuantizedModel, task: Task | None, batches: int) -> tuple[list[tuple[Tensor, ...]], str]:
    """Flat batches to compare on, and where they come from."""
    if task is None or task.calibration is None:
        return (list(model.distilled[:batches]), "distilled") if model.distilled else ([model.golden], "golden")
    nested = example(task)
    taken = [
        leaves_like(nested, batch, f"calibration batch {index}")
        for index, batch in enumerate(itertools.islice(data(task), batches))
    ]
    return (taken, "calibration") if taken else ([model.golden], "golden")


def home_of(model: QuantizedModel) -> Path:
    """The folder of a model.

    Raises:
        EdgeqError: it is not saved yet.
    """
    if model.folder is None:
        raise EdgeqError("the model is not saved yet: call model.save(folder) first, or name a folder to export to")
    return model.folder


def options_of(
    model: QuantizedModel, to: str, *, io: str | None, channels_last: bool | None, tune: int, float_twin: bool
) -> dict[str, Any]:
    """What an export tells a runtime beside the program, of what that takes.

    Raises:
        EdgeqError: the runtime is not installed, or has no such choice.
    """
    runtime = backends.RUNTIMES[backends.runtime_of(to)]
    if not backends.installed(to):
        raise EdgeqError(
            f"backend {to} needs {runtime.package}, which is not installed: pip install 'edgeq[{runtime.name}]'"
        )
    having = " and ".join(name for name, each in backends.RUNTIMES.items() if each.io)
    if io is not None and runtime.io and io not in runtime.io:
        raise EdgeqError(f"{to} cannot be exported with io {io!r}; choose one of {', '.join(runtime.io)}")
    if io is not None and not runtime.io:
        raise EdgeqError(f"{to} takes and gives floats, and only {having} has the choice; export it without --io {io}")
    if tune and backends.backend(to).tune is None:
        tuned = " and ".join(name for name, each in backends.RUNTIMES.items() if each.tunes)
        raise EdgeqError(
            f"{to} has nothing to tune: schedules are searched for {tuned}, on the computer that will run them"
        )
    if channels_last is not None and "channels_last" not in runtime.options:
        raise EdgeqError(
            f"{to} takes the network's own axes, and only {having} has the choice; leave channels last out"
        )
    told: dict[str, Any] = {"outputs": tuple(info.name for info in model.outputs)}
    if not float_twin:
        told |= {"preprocessing": model.preprocessing, "channels_last": channels_last}
    options = {name: value for name, value in told.items() if name in runtime.options}
    return options if io is None or float_twin else {**options, "io": io}
