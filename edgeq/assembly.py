"""A task becomes a model: captured before, put together after its numbers are resolved."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from edgeq.calib.data import sources
from edgeq.calib.data.arrays import Arrays
from edgeq.calib.data.batches import batches as checked
from edgeq.calib.data.sources import Source, made
from edgeq.calib.steps.ends import planned as ends
from edgeq.calib.written import DATA_SET, sourced, told, written
from edgeq.graph.annotate import Annotation, default_plan, followed, in_float
from edgeq.graph.capture import Captured, capture, confirm
from edgeq.graph.convert import convert, float_program
from edgeq.graph.golden import golden
from edgeq.graph.numbers import Resolved
from edgeq.graph.package import QuantizedModel
from edgeq.graph.store import hash_of
from edgeq.run.metric import begins
from edgeq.spec import EdgeqError, Progress, QuantPlan, Recipe, Target
from edgeq.task import Task, batches, build, example, load_task

LOOKED_AT = 2  # calibration batches on which the QDQ program is compared with the float network


Make = Callable[[nn.Module | ExportedProgram, Captured], list[tuple[Tensor, ...]]]


def silent(stage: str, done: int, total: int | None) -> None:
    """Report no progress."""


def remembered(given: Iterable[Any], first: list[Any]) -> Iterator[Any]:
    """`given`, whose first LOOKED_AT batches are kept in `first`."""
    for batch in given:
        if len(first) < LOOKED_AT:
            first.append(batch)
        yield batch


def refuse_types(*, target: Any, recipe: Any, precision: Any, plan: Any, output: Any, data: Any) -> None:
    """Raise EdgeqError where a choice of `quantize` is of another type than it takes."""
    several = "; portable is the target for all runtimes" if isinstance(target, (list, tuple)) else ""
    for name, choice, kinds, words in (
        ("target", target, (str,), f"give one name{several}"),
        ("recipe", recipe, (str, Path, Recipe), "give a name, the path of a .toml file or a Recipe"),
        ("precision", precision, (str,), "give one name; a plan says which layer gets another"),
        ("plan", plan, (str, Path, QuantPlan, type(None)), "give a QuantPlan or the path of a plan.json"),
        ("output", output, (str, Path, type(None)), "give the path of a folder"),
        ("data", data, (str, Path, type(None)), f"give {', '.join(sources.names())} or the path of .npy or .npz files"),
    ):
        if not isinstance(choice, kinds):
            raise EdgeqError(f"{name} is a {type(choice).__name__}: {words}")


def as_task(task: Any, example_inputs: Any, calibration: Any, evaluate: Any, data: Path | None = None) -> Task:
    """What `quantize` was given, as a task; data: a folder of arrays in the place of its calibration.

    Raises:
        EdgeqError: a network without example inputs or batches, or these beside a task.
    """
    if isinstance(task, (nn.Module, ExportedProgram)):
        if example_inputs is None:
            raise EdgeqError(
                f"quantize({type(task).__name__}) needs example_inputs=(tensor, …) and calibration=[batch, …] beside the network"
            )
        if isinstance(example_inputs, list) and isinstance(task, nn.Module) and len(example_inputs) == _asked(task):
            example_inputs = tuple(example_inputs)
        given = None if calibration is None else lambda: calibration
        made = Task(type(task).__name__, lambda: task, lambda: example_inputs, given, evaluate)
        return made if data is None else _from_arrays(made, data)
    if not isinstance(task, (Task, str, Path)):
        kind = f"the class {task.__name__}" if isinstance(task, type) else f"a {type(task).__name__}"
        raise EdgeqError(f"quantize() was given {kind}: give a torch.nn.Module, a Task or a task file's path")
    if any(given is not None for given in (example_inputs, calibration, evaluate)):
        raise EdgeqError("example_inputs, calibration and evaluate go with a network; a task has its own")
    made = task if isinstance(task, Task) else load_task(task)
    return made if data is None else _from_arrays(made, data)


def _from_arrays(task: Task, folder: Path) -> Task:
    """A task with a folder of arrays as its calibration."""
    return dataclasses.replace(task, calibration=partial(Arrays, folder, example(task)))


def _asked(network: nn.Module) -> int:
    """How many arguments forward cannot do without."""
    asked = inspect.signature(network.forward).parameters.values()
    return sum(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in asked)


@dataclass
class Supply:
    """What takes the place of a task's calibration: a source of made-up batches, or a path of arrays; or nothing does.

    distilled: the batches that a source made, flat.
    """

    source: Source | None = None
    arrays: Path | None = None
    distilled: list[tuple[Tensor, ...]] = field(default_factory=list)

    def maker(self, output: Path | None, progress: Progress) -> Make | None:
        """Makes a source's batches for a network; None where there is no source."""
        source = self.source
        if source is None:
            return None

        def make(network: nn.Module | ExportedProgram, captured: Captured) -> list[tuple[Tensor, ...]]:
            self.distilled = made(source, network, captured, output, progress)
            return self.distilled

        return make

    @property
    def told(self) -> dict[str, Any] | None:
        """The source as plain data."""
        return None if self.source is None else told(self.source)

    def origin(self, task: Task) -> dict[str, Any] | None:
        """Where calibration data comes from, as plain data; None where there is none."""
        if self.arrays is not None:
            return {"source": "arrays", "path": str(self.arrays)}
        return self.told or (None if task.calibration is None else {"source": "calibration"})


def supplied(
    data: str | Path | None, settings: Sequence[str] | str, plan: QuantPlan | None
) -> tuple[Supply, Sequence[str]]:
    """What `--data` names, and the settings that are the recipe's; where it names nothing, the plan may name a source.

    Raises:
        EdgeqError: the source, the plan's too, has no such option; or options stand there without one.
    """
    settings = (settings,) if isinstance(settings, str) else settings
    own = [each for each in settings if each.startswith(DATA_SET)]
    others = [each for each in settings if each not in own]
    if isinstance(data, str) and data in sources.names():
        return Supply(sourced(data, {}, own, "--data")), others
    if data is None and plan is not None and plan.data is not None:
        options = dict(plan.data)
        return Supply(sourced(str(options.pop("source", "")), options, own, "the plan's data")), others
    if own:
        raise EdgeqError(f"--set {own[0]}: is an option of made-up data: add --data {' or '.join(sources.names())}")
    return Supply(arrays=None if data is None else Path(data).absolute()), others


def confirmed(task: Task, make: Make | None = None) -> tuple[Captured, Iterator[Any] | None]:
    """The task's network as a graph that answers as the network does, and its calibration batches, where it has any.

    make: gives batches in the place of the task's.

    Raises:
        EdgeqError: they part, or the task fails.
    """
    network = build(task)
    captured = capture(network, example(task))
    every = batches(task) if make is None else iter(make(network, captured))
    head, there = list(itertools.islice(every, 1)), make is not None or task.calibration is not None
    if there:
        with warnings.catch_warnings(action="ignore"):  # calibrate says what is to be warned of, over all batches
            list(checked(captured, head))
    confirm(network, captured, head[0] if head else captured.nested)
    if task.evaluate is not None:
        begins(task, network, captured)
    return captured, itertools.chain(head, every) if there else None


def plan_of(
    captured: Captured,
    target: Target,
    recipe: Recipe,
    precision: str,
    given: QuantPlan | None,
    keep_float: Sequence[str],
    data: dict[str, Any] | None = None,
) -> QuantPlan:
    """Which layer gets which precision: as a person's plan says, else as the target and the recipe do.

    data: the source of made-up batches, as plain data.
    """
    if given is None:
        plan = ends(captured, default_plan(captured, target, recipe.name, precision), recipe)
    else:
        plan = followed(captured, target, given, precision)
    return dataclasses.replace(in_float(plan, keep_float), recipe=recipe.name, steps=written(recipe), data=data)


def capture_task(task: Task, progress: Progress = silent) -> Captured:
    """The task's network as a graph."""
    progress("capture", 0, None)
    return capture(build(task), example(task))


def assemble(
    task: Task, captured: Captured, annotation: Annotation, resolved: Resolved, plan: QuantPlan
) -> QuantizedModel:
    """Convert and gather everything that is saved."""
    program, labels = convert(captured, annotation, resolved)
    twin, twin_labels = float_program(captured, resolved)
    of = {node: resolved.activations[annotation.tensors.key(node)] for node in annotation.tensors.parent}
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
        golden=golden(captured, of, placeholders),
        task=str(task.path) if task.path else None,
        task_sha256=hash_of(task.path) if task.path else None,
        preprocessing=task.preprocessing,
    )


def _tensor_key(node: Node, names: dict[Node, str], captured: Captured) -> str:
    if node in names:
        return names[node]
    return captured.keys.get(node.name, f"input {node.name}")
