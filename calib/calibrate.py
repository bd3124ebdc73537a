"""Run a recipe: one pass over the calibration data, then scales and roundings resolved."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.cache import Cache
from edgeq.calib.correct import correct, frames
from edgeq.calib.equalise import equalise
from edgeq.calib.floats import Floats
from edgeq.calib.objectives.tgpl import HOOK, Positives, TaskLoss
from edgeq.calib.ranges import method, sparsity
from edgeq.calib.ranges.affine import affine
from edgeq.calib.ranges.observe import Observer
from edgeq.calib.ranges.weights import channel_scales
from edgeq.calib.ratios import keep_ratios
from edgeq.calib.reconstruct import Engine
from edgeq.calib.rounding import method as rounding
from edgeq.calib.twins import Numbers, Twins
from edgeq.calib.unlike import Again, Looked, apart
from edgeq.calib.ways import Ways
from edgeq.calib.workspace import workspace
from edgeq.graph.annotate import Annotation
from edgeq.graph.capture import Captured, flatten, leaves_like
from edgeq.graph.convert import Resolved, snap_weight_scale
from edgeq.graph.ops import WEIGHTED, constant, kind_of, node_arg
from edgeq.graph.ordered import ordered
from edgeq.spec import EdgeqError, EdgeqWarning, Precision, Progress, QParams, QuantSpec, Recipe

STACKED: Final = (
    1 << 18
)  # float32 values of the largest activation of stacked batches: 1 MiB, which stays in the caches
Spool = Callable[[int, tuple[Tensor, ...], tuple[Tensor, ...]], None]


def batches(captured: Captured, data: Iterable[Any]) -> Iterator[tuple[Tensor, ...]]:
    """Flat calibration batches, each checked against the network's inputs; warns of an input that is 0 in all of them.

    Raises:
        EdgeqError: no batches at all, or one of the wrong structure, shape or dtype, or with NaN or Inf.
    """
    count, told = 0, {i.name for i in captured.inputs if not i.dtype.startswith("float")}  # inputs that say something
    for count, raw in enumerate(data, start=1):
        where = f"calibration batch {count - 1}"
        batch = leaves_like(captured.nested, raw, where)
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
                    f"{where}, input {info.name!r}: shape {tuple(tensor.shape)}, but example_inputs() fixed {info.shape}: "
                    "yield that shape, or change example_inputs()"
                )
            if str(tensor.dtype) != f"torch.{info.dtype}":
                raise EdgeqError(f"{where}, input {info.name!r}: dtype {tensor.dtype}, expected torch.{info.dtype}")
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise EdgeqError(f"{where}, input {info.name!r}: contains NaN or Inf; clean the calibration data")
            if info.name not in told and bool(tensor.any()):
                told.add(info.name)
        yield batch
    if count == 0:
        raise EdgeqError("calibration() yields no batches: give at least one, 32 or more are better")
    silent = ", ".join(repr(i.name) for i in captured.inputs if i.name not in told)
    if silent:
        warnings.warn(
            f"input {silent} is 0 in every calibration batch, so its scale is arbitrary, and so are those behind it: let "
            "calibration() yield data as the network will see it",
            EdgeqWarning,
            stacklevel=1,
        )


@ordered()
def calibrate(
    captured: Captured,
    annotation: Annotation,
    recipe: Recipe,
    data: Iterable[Any],
    progress: Progress,
    *,
    hook: Callable[[str], Callable[..., Any] | None] = lambda name: None,
    output: Path | None = None,
    again: Again | None = None,
    settled: frozenset[str] = frozenset(),
) -> tuple[Annotation, Resolved]:
    """Resolve every scale of `annotation` by `recipe` on calibration `data` (batches like the example inputs).

    hook: the task's function of a name, which a method may need: see HOOK of edgeq.calib.objectives.tgpl. output: beside
    it, in `<output>.partial`, lies what a reconstruction has finished; an interrupted calibration goes on from there, and
    the caller removes the folder once the result is safe. again: makes the annotation anew where values of unlike size
    would share a scale (edgeq.calib.unlike), which touches no layer of `settled`; None leaves it as it is. Returns the
    annotation and its numbers.

    Raises:
        EdgeqError: the data does not fit the network, or the recipe needs positives that are not there.
    """
    plan, ranges = recipe.reconstruction, method(recipe.activations)
    if plan is None and not (ranges.search or recipe.equalised or recipe.corrected):
        annotation, observers = look(captured, annotation, recipe, data, progress, again, settled)
        return annotation, resolve(captured, annotation, recipe, observers)
    guided = plan is not None and "tgpl" in plan.objectives
    positives: Positives | None = hook(HOOK) if guided else None
    if guided and positives is None:
        raise EdgeqError(
            f"recipe {recipe.name!r} looks at the cells where the detector's answers are: add positives(outputs) to the "
            "task file, which takes the float outputs of one batch and returns one mask per output (1 at positives); see "
            "examples/centerpoint_pillar.py, or use recipe 'adaround', which needs none"
        )
    with workspace(output if plan is not None else None) as home:
        cache, key = Cache(home.cache), fingerprint(captured, annotation, recipe)
        task = TaskLoss(cache, positives, [o.name for o in captured.outputs]) if guided and positives else None
        if recipe.equalised:
            data = spooled(cache, captured, batches(captured, data), progress)
            equalise(captured, annotation, data, progress)

        placeholders = Floats(captured).placeholders

        def spool(index: int, batch: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
            for node, tensor in zip(placeholders, batch, strict=True):
                if not recipe.equalised:
                    cache.write(f"float {node.name}", index, tensor, 1)
                key.update(tensor.contiguous().numpy().tobytes())
            if task is not None:
                for mask in task.add(index, outputs):
                    key.update(mask.numpy().tobytes())

        annotation, observers = look(captured, annotation, recipe, data, progress, again, settled, spool)
        resolved = resolve(captured, annotation, recipe, observers)
        numbers = Numbers(captured, annotation, resolved)
        if ranges.search:
            sparsity.search(numbers, cache, observers, ranges.least, progress)
            settle(numbers, recipe)
        if plan is None and recipe.corrected:
            correct(Twins(numbers, cache, frames(Floats(captured))), progress)
        if plan is not None:
            home.open(key.hexdigest())
            if task is not None:
                _report_positives(task, cache.frames, progress)
            Engine(Twins(numbers, cache), recipe, home, progress, task).run()
        return annotation, resolved


class Spooled:
    """Calibration batches that lie in a cache, read anew each time they are asked for."""

    def __init__(self, cache: Cache, captured: Captured) -> None:
        self.cache, self.names = cache, [f"float {n.name}" for n in Floats(captured).placeholders]

    def __len__(self) -> int:
        return self.cache.frames

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for frame in range(self.cache.frames):
            yield tuple(self.cache.read(name, frame, frame + 1) for name in self.names)


def spooled(cache: Cache, captured: Captured, data: Iterable[tuple[Tensor, ...]], progress: Progress) -> Spooled:
    """Write every batch of `data` into the cache."""
    found = Spooled(cache, captured)
    for index, batch in enumerate(data):
        for name, tensor in zip(found.names, batch, strict=True):
            cache.write(name, index, tensor, 1)
        progress("read calibration data", index + 1, None)
    return found


def fingerprint(captured: Captured, annotation: Annotation, recipe: Recipe) -> hashlib._Hash:
    """A hash of everything but the data that decides the numbers."""
    made_by = version("edgeq"), torch.__version__
    found = hashlib.sha256(repr((recipe, annotation.groups, annotation.weight_only, made_by)).encode())
    for name, tensor in sorted(captured.module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found


def _report_positives(task: TaskLoss, frames: int, progress: Progress) -> None:
    """Say how many frames the task-guided loss leaves out.

    Raises:
        EdgeqError: all of them.
    """
    missing = frames - len(task.frames)
    if not task.frames:
        raise EdgeqError(
            f"positives() marks nothing in any of the {frames} calibration batches: give frames in which the float network "
            "finds objects, or lower the score that positives() asks for"
        )
    progress(f"positives: {missing} of {frames} batches have none and guide nothing", len(task.frames), frames)


def resolve(captured: Captured, annotation: Annotation, recipe: Recipe, observers: Mapping[Node, Observer]) -> Resolved:
    """Scales and weights from what was observed, nothing learned yet. observers: of each tensor set."""
    resolved = Resolved(grids(annotation, recipe, observers), {}, {})
    settle(Numbers(captured, annotation, resolved), recipe)
    return resolved


def grids(annotation: Annotation, recipe: Recipe, observers: Mapping[Node, Observer]) -> dict[Node, QParams]:
    """Scale and zero point of each tensor set."""
    interval = method(recipe.activations)
    found: dict[Node, QParams] = {}
    for root in observers:
        fixed = annotation.tensors.fixed.get(root)
        spec = annotation.tensors.specs[root]
        found[root] = fixed or affine(*interval(observers[root], spec), spec)
    return found


def look(
    captured: Captured,
    annotation: Annotation,
    recipe: Recipe,
    data: Iterable[Any],
    progress: Progress,
    again: Again | None,
    settled: frozenset[str],
    spool: Spool | None = None,
) -> tuple[Annotation, dict[Node, Observer]]:
    """One float pass over `data`; returns the annotation, with values of unlike size apart, and tensor set → what was seen."""
    looked = Looked(captured, set() if again is None else {*Ways(captured, annotation).ends(), *answers(captured)})
    observers = observe(captured, annotation, recipe, data, progress, spool, looked)
    if again is not None:

        def ranges(changed: Annotation) -> dict[Node, QParams]:
            return grids(changed, recipe, sets(changed, observers))

        annotation = apart(annotation, again, ranges, observers, method(recipe.activations), looked, settled)
    return annotation, sets(annotation, observers)


def sets(annotation: Annotation, observers: Mapping[Node, Observer]) -> dict[Node, Observer]:
    """Tensor set → what was seen of its members."""
    return {
        root: Observer.merged([observers[n] for n in members]) for root, members in annotation.tensors.sets().items()
    }


def settle(numbers: Numbers, recipe: Recipe) -> None:
    """Weight scales and integers for the activation scales in `numbers`, which are widened where a kernel needs it."""
    annotation, resolved = numbers.annotation, numbers.resolved
    layers = list(weighted_layers(numbers.captured, annotation))
    resolved.scales.update({x.key: channel_scales(x.weight, x.axis, x.spec, recipe.weights) for x in layers})
    keep_ratios(annotation, resolved.activations, resolved.scales)
    for layer in layers:
        if layer.source is not None:
            in_scale = resolved.activations[annotation.tensors.find(layer.source)].scale[0]
            resolved.scales[layer.key] = snap_weight_scale(resolved.scales[layer.key], layer.bias, in_scale)
    nearby = rounding(recipe.rounding)
    resolved.weights.update({x.key: nearby(x.weight, resolved.scales[x.key], x.axis, x.spec) for x in layers})


@dataclass(frozen=True, slots=True)
class WeightedLayer:
    """A layer whose weights are quantized; `source` is its input where that is quantized too. `axis`: C_out of weight."""

    key: str
    weight: Tensor
    bias: Tensor | None
    axis: int
    spec: QuantSpec
    source: Node | None


def weighted_layers(captured: Captured, annotation: Annotation) -> Iterator[WeightedLayer]:
    """Every layer with quantized weights: those of integer operators, then the weight-only ones."""
    found: list[tuple[str, str, Node, Precision, Node | None]] = [
        (g.key, g.kind, g.node, g.precision, g.inputs[0]) for g in annotation.groups if g.kind in WEIGHTED
    ]
    found += [(k, kind_of(n) or "", n, p, None) for k, (n, p) in annotation.weight_only.items()]
    for key, kind, node, precision, source in found:
        weight_at, bias_at, axis = WEIGHTED[kind]
        weight, bias = node.args[weight_at], node_arg(node, bias_at, None)
        assert isinstance(weight, Node) and precision.weight is not None
        yield WeightedLayer(
            key,
            constant(captured.module, weight),
            constant(captured.module, bias) if isinstance(bias, Node) else None,
            axis,
            precision.weight,
            source,
        )


def observe(
    captured: Captured,
    annotation: Annotation,
    recipe: Recipe,
    data: Iterable[Any],
    progress: Progress,
    spool: Spool | None,
    looked: Looked,
) -> dict[Node, Observer]:
    """One float pass over `data`; returns tensor → what was seen of it, where that is not moved or joined from others.

    `spool` gets every batch with its outputs, `looked` the first batches.
    """
    histogram = method(recipe.activations).needs_histogram
    watching = {
        node: Observer(captured.keys.get(node.name, f"input {node.name}"), histogram=histogram)
        for members in annotation.tensors.sets().values()
        for node in members
    }
    floats, given = Floats(captured), answers(captured)
    total = len(data) if isinstance(data, Sized) else None
    done = 0
    for group in stacks(floats, batches(captured, data)):
        found: dict[Node, Tensor] = {}
        wanted = {*given, *(looked.keep if looked.wants() else ())}
        with torch.no_grad():
            inputs = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*group, strict=True)]
            for node, seen in floats.walk(inputs):
                if node in watching:
                    watching[node].update(seen, batch=done, stacked=len(group))
                if node in wanted:
                    found[node] = seen
        each = {n: seen.chunk(len(group)) if len(group) > 1 else (seen,) for n, seen in found.items()}
        for index, batch in enumerate(group):
            if looked.wants():
                looked.add(batch, {n: each[n][index] for n in looked.keep})
            if spool is not None:
                spool(done + index, batch, tuple(each[n][index] for n in given))
        done += len(group)
        progress("calibrate", done, total)
    return watching


def answers(captured: Captured) -> list[Node]:
    """The nodes that are the network's outputs, in their order."""
    return [n for n in flatten(captured.module.graph.output_node().args[0]) if isinstance(n, Node)]


def stacks(floats: Floats, frames: Iterable[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """Batches in groups that are computed at once: as many as STACKED allows, where the network takes more than one."""
    frames = iter(frames)
    two = list(itertools.islice(frames, 2))
    several = len(two) == 2 and floats.fits(STACKED) > 1 and floats.stackable(*two)
    size, frames = floats.fits(STACKED) if several else 1, itertools.chain(two, frames)
    while group := list(itertools.islice(frames, size)):
        yield group
