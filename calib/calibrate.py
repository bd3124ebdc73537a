"""Run a recipe: one pass over the calibration data, then scales, roundings and corrections resolved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from edgeq.calib.ranges import method
from edgeq.calib.ranges.observe import Observer
from edgeq.calib.ranges.affine import affine
from edgeq.calib.ranges.weights import channel_scales
from edgeq.graph.annotate import Annotation
from edgeq.graph.capture import Captured, flatten
from edgeq.graph.convert import Resolved, snap_weight_scale
from edgeq.graph.ops import WEIGHTED, constant, node_arg
from edgeq.spec import EdgeqError, QParams, Recipe

Progress = Callable[[str, int, int | None], None]


def batches(captured: Captured, data: Iterable[Any]) -> Iterator[tuple[Tensor, ...]]:
    """Flat calibration batches, each checked against the network's inputs.

    Raises:
        EdgeqError: no batches at all, or one of the wrong structure, shape or dtype, or with NaN or Inf.
    """
    count = 0
    for count, raw in enumerate(data, start=1):
        batch = flatten(raw)
        where = f"calibration batch {count - 1}"
        if len(batch) != len(captured.inputs):
            raise EdgeqError(
                f"{where} has {len(batch)} tensors, the network takes {len(captured.inputs)}: "
                "yield tuples like example_inputs()"
            )
        for tensor, info in zip(batch, captured.inputs, strict=True):
            if not isinstance(tensor, Tensor):
                raise EdgeqError(f"{where}, input {info.name!r}: a {type(tensor).__name__} instead of a tensor")
            if tuple(tensor.shape) != info.shape:
                raise EdgeqError(
                    f"{where}, input {info.name!r}: shape {tuple(tensor.shape)}, but example_inputs() fixed {info.shape}"
                )
            if str(tensor.dtype) != f"torch.{info.dtype}":
                raise EdgeqError(f"{where}, input {info.name!r}: dtype {tensor.dtype}, expected torch.{info.dtype}")
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise EdgeqError(f"{where}, input {info.name!r}: contains NaN or Inf; clean the calibration data")
        yield batch
    if count == 0:
        raise EdgeqError("calibration() yields no batches: give at least one, 32 or more are better")


def calibrate(
    captured: Captured, annotation: Annotation, recipe: Recipe, data: Iterable[Any], progress: Progress
) -> Resolved:
    """Resolve every scale of `annotation` by `recipe` on calibration `data` (batches like the example inputs)."""
    observers = observe(captured, annotation, recipe, data, progress)
    interval = method(recipe.activations)
    activations: dict[Node, QParams] = {}
    for root in observers:
        fixed = annotation.tensors.fixed.get(root)
        spec = annotation.tensors.specs[root]
        activations[root] = fixed or affine(*interval(observers[root], spec), spec)
    return Resolved(activations, weight_scales(captured, annotation, recipe, activations))


def observe(
    captured: Captured, annotation: Annotation, recipe: Recipe, data: Iterable[Any], progress: Progress
) -> dict[Node, Observer]:
    """One float pass over `data`; returns tensor set → what was seen of it."""
    histogram = method(recipe.activations).needs_histogram
    observers: dict[Node, Observer] = {}
    watching: dict[Node, Observer] = {}
    for root, members in annotation.tensors.sets().items():
        observers[root] = Observer(captured.keys.get(root.name, f"input {root.name}"), histogram=histogram)
        watching.update(dict.fromkeys(members, observers[root]))
    runner = _Watcher(captured, watching)
    total = len(data) if hasattr(data, "__len__") else None
    done = 0
    for done, batch in enumerate(batches(captured, data), start=1):
        runner.batch = done - 1
        with torch.no_grad():
            runner.run(*batch)
        progress("calibrate", done, total)
    return observers


def weight_scales(
    captured: Captured, annotation: Annotation, recipe: Recipe, activations: dict[Node, QParams]
) -> dict[str, Tensor]:
    """Per-channel weight scales of every layer with quantized weights: layer key → float32 [C_out]."""
    scales: dict[str, Tensor] = {}
    weighted = [(g.key, g.kind, g.node, g.precision, g.inputs) for g in annotation.groups if g.kind in WEIGHTED]
    for key, kind, node, precision, inputs in weighted:
        weight_at, bias_at, axis = WEIGHTED[kind]
        assert precision.weight is not None
        bias_node = node_arg(node, bias_at, None)
        bias = constant(captured.module, bias_node) if isinstance(bias_node, Node) else None
        scale = channel_scales(_constant(captured, node.args[weight_at]), axis, precision.weight, recipe.weights)
        in_scale = activations[annotation.tensors.find(inputs[0])].scale[0]
        scales[key] = snap_weight_scale(scale, bias, in_scale)
    for key, (node, precision) in annotation.weight_only.items():
        assert precision.weight is not None
        weight_at, _, axis = WEIGHTED[key.rsplit("/", 1)[-1].split("#")[0]]
        scales[key] = channel_scales(_constant(captured, node.args[weight_at]), axis, precision.weight, recipe.weights)
    return scales


def _constant(captured: Captured, node: Any) -> Tensor:
    assert isinstance(node, Node)
    return constant(captured.module, node)


class _Watcher(Interpreter):
    """Runs the float graph and shows observed values to their observers, freeing each value after its last use."""

    def __init__(self, captured: Captured, watching: dict[Node, Observer]) -> None:
        super().__init__(captured.module)
        self.watching = watching
        self.batch = 0

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        observer = self.watching.get(n)
        if observer is not None:
            observer.update(value, batch=self.batch)
        return value
