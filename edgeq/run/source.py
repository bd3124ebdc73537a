"""The task file a model came from: code, which runs only where the user says so or where it is what was quantized."""

from __future__ import annotations

import warnings
from pathlib import Path

from edgeq.graph.package import QuantizedModel
from edgeq.graph.store import hash_of
from edgeq.spec import EdgeqWarning
from edgeq.task import Task, load_task


def task_of(model: QuantizedModel, given: str | Path | None = None) -> Task | None:
    """The task of a model folder: the file that the user names, else the one recorded at quantize, if it lies where it lay
    with the hash it had. A folder from somebody else therefore runs none of its own.

    Warns where the recorded file is another now. None: there is no such file, or it is not run.

    Raises:
        EdgeqError: the file that was named cannot be read as a task.
    """
    if given is not None:
        return load_task(given)
    path = Path(model.task) if model.task else None
    if path is None or not path.is_file():
        return None
    inside = model.folder is not None and path.resolve().is_relative_to(model.folder.resolve())
    if not path.is_absolute() or inside or model.task_sha256 is None or hash_of(path) != model.task_sha256:
        why = "lies in the model folder" if inside else "was changed since the model was quantized"
        warnings.warn(
            f"{path} {why}, and is not run: name it with --task {path} if you trust it, or quantize again",
            EdgeqWarning,
            stacklevel=2,
        )
        return None
    return load_task(path)
