"""The task file: plain Python that says what to quantize, on what to calibrate, and how good it is."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeq.spec import EdgeqError

T = TypeVar("T")
Predict = Callable[..., tuple[Tensor, ...]]
STAGES = ("model", "example_inputs", "calibration", "evaluate", "PREPROCESSING")  # what the pipeline itself asks for


@dataclass(frozen=True, slots=True)
class Task:
    """What a user wants quantized.

    model: makes the float network. example_inputs: a tuple of its forward's arguments, a dictionary by
        name, or (args, kwargs); shapes are fixed by them.
    calibration: batches like `example_inputs`; None needs a data-free recipe.
    evaluate: takes `predict(*inputs) -> tuple of tensors`, returns named numbers. path: the file it came from.
    hooks: what the file has besides, by name; a method asks for a function of a name that it documents (see `hook`).
    preprocessing: what an app must do to its input (mean, scale, layout, labels); travels in the manifest.
    """

    name: str
    model: Callable[[], nn.Module | ExportedProgram]
    example_inputs: Callable[[], tuple[Any, ...]]
    calibration: Callable[[], Iterable[tuple[Any, ...]]] | None = None
    evaluate: Callable[[Predict], dict[str, float]] | None = None
    preprocessing: dict[str, Any] | None = None
    path: Path | None = None
    hooks: Mapping[str, Any] = field(default_factory=dict)


def load_task(path: str | Path) -> Task:
    """Read a task file.

    Raises:
        EdgeqError: the file is missing, does not run, or lacks `model` or `example_inputs`.
    """
    file = Path(path)
    if not file.is_file():
        raise EdgeqError(f"{file}: no such task file; copy one from examples/ and change its model")
    place = file.resolve()  # before the file is run, which may change the current folder
    module = _execute(file)
    for needed in ("model", "example_inputs"):
        if not callable(getattr(module, needed, None)):
            raise EdgeqError(f"{file}: a task file needs a function {needed}(); see examples/ for one to copy")
    for name in ("calibration", "evaluate"):
        if not callable(getattr(module, name, print)):
            raise EdgeqError(f"{file}: {name} is no function; see examples/ for one to copy")
    preprocessing = getattr(module, "PREPROCESSING", None)
    if preprocessing is not None:
        if not isinstance(preprocessing, dict):
            raise EdgeqError(f"{file}: PREPROCESSING is a {type(preprocessing).__name__}; write a dictionary")
        _check_plain(preprocessing, f"{file}: PREPROCESSING", ())
    return Task(
        name=file.stem,
        model=module.model,
        example_inputs=module.example_inputs,
        calibration=getattr(module, "calibration", None),
        evaluate=getattr(module, "evaluate", None),
        preprocessing=preprocessing,
        path=place,
        hooks={k: v for k, v in vars(module).items() if not k.startswith("_") and k not in STAGES},
    )


def build(task: Task) -> nn.Module | ExportedProgram:
    """The task's network.

    Raises:
        EdgeqError: model() fails or returns something else.
    """
    made = asked(task, "model", task.model)
    if not isinstance(made, (nn.Module, ExportedProgram)):
        raise EdgeqError(f"{task.name}: model() returned a {type(made).__name__}; return a torch.nn.Module")
    return made


def example(task: Task) -> tuple[Any, ...]:
    """The task's example inputs; one alone need not be a tuple, and may stand in a list.

    A list of several is one argument, as forward([a, b]) takes it.

    Raises:
        EdgeqError: example_inputs() fails.
    """
    made = asked(task, "example_inputs", task.example_inputs)
    if isinstance(made, list) and len(made) == 1 and isinstance(made[0], Tensor):
        return tuple(made)
    return made if isinstance(made, tuple) else (made,)


def batches(task: Task) -> Iterator[Any]:
    """The task's calibration batches, none where it has no calibration().

    Raises:
        EdgeqError: it, or its generator on the way, fails; or it returns nothing that gives batches.
    """
    if task.calibration is None:
        return
    made = asked(task, "calibration", task.calibration)
    if not isinstance(made, Iterable):
        kind = "nothing" if made is None else f"a {type(made).__name__}"
        raise EdgeqError(
            f"{task.path or task.name}: calibration() returned {kind}; return a list of batches, or yield them"
        )
    given, end = asked(task, "calibration", iter, made), object()
    while (batch := asked(task, "calibration", next, given, end)) is not end:
        yield batch


def hook(task: Task, name: str) -> Callable[..., Any] | None:
    """The task's function `name`, which a method asks for; its failures become one sentence. None where there is none.

    Raises:
        EdgeqError: it is no function.
    """
    function = task.hooks.get(name)
    if function is None:
        return None
    if not callable(function):
        raise EdgeqError(f"{task.path or task.name}: {name} is no function; see examples/ for one to copy")
    return lambda *arguments: asked(task, name, function, *arguments)


def asked(task: Task, name: str, function: Callable[..., T], *arguments: Any) -> T:
    """Call one of the task's functions; its failure is the user's to mend and becomes one sentence.

    Raises:
        EdgeqError: the function raised.
    """
    try:
        return function(*arguments)
    except EdgeqError:
        raise
    except (Exception, SystemExit) as error:
        line = _line(error, task.path) if task.path else ""
        raise EdgeqError(f"{task.path or task.name}{line}: {name}() failed: {type(error).__name__}: {error}") from error


def _execute(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"edgeq_task_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise EdgeqError(f"{file}: not a Python file; a task file ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)  # a task file imports its neighbours
    try:
        spec.loader.exec_module(module)
    except EdgeqError:
        raise
    except (Exception, SystemExit) as error:
        line = _line(error, file)
        raise EdgeqError(f"{file}{line}: the task file does not run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return module


def _check_plain(value: Any, at: str, around: tuple[int, ...]) -> None:
    """Raise EdgeqError where what travels with the artefacts is more than JSON can say."""
    if id(value) in around:
        raise EdgeqError(f"{at} holds itself; write plain numbers, strings, lists and dictionaries")
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(value, dict) and not isinstance(key, str):
                raise EdgeqError(f"{at} has the key {key!r}; keys are strings")
            _check_plain(inner, f"{at}[{key!r}]", (*around, id(value)))
    elif isinstance(value, float) and not math.isfinite(value):
        raise EdgeqError(f"{at} is {value}, which JSON cannot say; write a finite number")
    elif not isinstance(value, (str, int, float, bool, type(None))):
        hint = "; write its tolist()" if hasattr(value, "tolist") else ""
        raise EdgeqError(f"{at} is a {type(value).__name__}, and travels as JSON{hint}")


def _line(error: BaseException, file: Path) -> str:
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line
