"""The task's own metric: of the user's module, of the QDQ program, of an artefact."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeq.backends import Predict
from edgeq.graph.capture import Captured, leaves_like
from edgeq.graph.own import plain, run, same, tensors, undisturbed
from edgeq.graph.package import QuantizedModel
from edgeq.spec import EdgeqError
from edgeq.task import Task, asked, build, example


class _Enough(BaseException):
    """evaluate() got a first answer and asked for the next."""


def evaluate(task: Task, predict: Predict) -> dict[str, float] | None:
    """The task's metric of `predict`; None where the task has none.

    Raises:
        EdgeqError: evaluate() fails, or returns no named numbers.
    """
    if task.evaluate is None:
        return None
    shapes: list[Any] = []

    def flat(*inputs: Any) -> tuple[Tensor, ...]:
        if not shapes:
            shapes.append(example(task))
        leaves = leaves_like(shapes[0], inputs, "what predict() got")
        return _sliced(predict, leaves, [t for t in pytree.tree_leaves(shapes[0]) if isinstance(t, Tensor)])

    found = asked(task, "evaluate", task.evaluate, flat)
    try:
        return {str(name): float(number) for name, number in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise EdgeqError(
            f"{task.path or task.name}: evaluate() returned {found!r:.80}; return named numbers, as {{'top1': 0.7}}"
        ) from error


def _sliced(predict: Predict, leaves: tuple[Any, ...], like: list[Tensor]) -> tuple[Tensor, ...]:
    """Answers for a batch of any size: in slices of the network's own, the last filled up with its last example."""
    batched = len(leaves) == len(like) and all(
        isinstance(t, Tensor) and t.dim() and e.dim() for t, e in zip(leaves, like, strict=True)
    )
    sizes = {(t.shape[0], e.shape[0]) for t, e in zip(leaves, like, strict=True)} if batched else set()
    if len(sizes) != 1 or any(t.shape[1:] != e.shape[1:] for t, e in zip(leaves, like, strict=True)):
        return predict(leaves)
    ((given, taken),) = sizes
    if given in (0, taken):
        return predict(leaves)
    places = [torch.arange(start, start + taken).clamp(max=given - 1) for start in range(0, given, taken)]
    answers = [predict(tuple(t[at] for t in leaves)) for at in places]
    return tuple(torch.cat(parts)[:given] for parts in zip(*answers, strict=True))


def begins(task: Task, network: nn.Module | ExportedProgram, captured: Captured) -> None:
    """Let evaluate() use one answer of the user's module, so that a failure shows before anything is calibrated.

    Raises:
        EdgeqError: evaluate() fails up to its second question, or returns no named numbers where it asks only one.
    """
    own, asked_before = plain(network), False

    def once(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        nonlocal asked_before
        if asked_before:
            raise _Enough
        asked_before = True
        return _answer(own, captured.nested, inputs)

    with undisturbed(own), contextlib.suppress(_Enough):
        evaluate(task, once)


def float_metric(task: Task, model: QuantizedModel) -> dict[str, float] | None:
    """The metric of the user's own module; of the captured float network where model() gives another network by now."""
    if task.evaluate is None:
        return None
    own, nested = plain(build(task)), example(task)
    with undisturbed(own):
        again = _answer(own, nested, model.golden)
        if len(again) == len(model.outputs) and all(map(same, again, model.float(model.golden))):
            return evaluate(task, lambda inputs: _answer(own, nested, inputs))
    return evaluate(task, model.float)


def _answer(own: nn.Module, nested: Any, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Flat outputs of the user's module for flat inputs."""
    given = pytree.tree_unflatten(list(inputs), pytree.tree_structure(nested))
    return tuple(tensors(run(own, given, "what evaluate() gave to predict()")))
