"""Does the artefact compute what the simulation says? In LSB, output by output, layer by layer."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgeq import backends
from edgeq.graph.excerpt import cuts, excerpt
from edgeq.graph.far import apart, sqnr_db
from edgeq.graph.integer import tensor_qparams
from edgeq.graph.package import QuantizedModel
from edgeq.graph.simulate import simulate
from edgeq.run.coverage import coverage_json
from edgeq.run.curves import Tried, tried
from edgeq.run.files import size
from edgeq.run.metric import evaluate
from edgeq.run.place import Batch, Place
from edgeq.spec import Artifact, EdgeqError, QParams, TensorInfo
from edgeq.task import Task


@dataclass(frozen=True, slots=True)
class OutputParity:
    """One output of an artefact against its runtime's simulation and against the float QDQ program.

    max_lsb, qdq_lsb: largest difference, in steps of the output's own grid; where the output is computed in float, in
    1/255 of its range (`equivalent`), or in what sums in float32 round where that is more. exact_share: share of elements
    equal, in whole steps. sqnr_db: against float.
    """

    name: str
    max_lsb: float
    exact_share: float
    qdq_lsb: float
    sqnr_db: float
    equivalent: bool


@dataclass(frozen=True, slots=True)
class KernelParity:
    """All outputs of an artefact run with one kernel set."""

    kernels: str
    arithmetic: str
    outputs: tuple[OutputParity, ...]
    metric: dict[str, float] | None
    curves: Tried
    metric_error: str = ""  # why the task's evaluate() gave none

    @property
    def max_lsb(self) -> float:
        """The worst output's."""
        return max(o.max_lsb for o in self.outputs)

    @property
    def exact_share(self) -> float:
        """The worst output's."""
        return min(o.exact_share for o in self.outputs)

    @property
    def qdq_lsb(self) -> float:
        """The worst output's."""
        return max(o.qdq_lsb for o in self.outputs)


@dataclass(frozen=True, slots=True)
class Parity:
    """One backend's artefact; the figures at the top are those of its worst kernel set."""

    backend: str
    kernels: tuple[KernelParity, ...]
    batches: int

    @property
    def max_lsb(self) -> float:
        """Largest difference from the runtime's simulation over kernel sets and outputs."""
        return max(k.max_lsb for k in self.kernels)

    @property
    def exact_share(self) -> float:
        """Smallest share of exactly equal elements over kernel sets and outputs."""
        return min(k.exact_share for k in self.kernels)

    @property
    def qdq_lsb(self) -> float:
        """Largest difference from the float QDQ program over kernel sets and outputs."""
        return max(k.qdq_lsb for k in self.kernels)

    @property
    def sqnr_db(self) -> float:
        """Smallest ratio of signal to noise against the float network over kernel sets and outputs."""
        return min(o.sqnr_db for k in self.kernels for o in k.outputs)

    @property
    def metric(self) -> dict[str, float] | None:
        """The task's metric with the kernels an app gets by default (the last of the target's list)."""
        return self.kernels[-1].metric

    @property
    def metric_error(self) -> str:
        """Why evaluate() failed on the artefact; empty where it did not."""
        return self.kernels[-1].metric_error


def verify(
    model: QuantizedModel,
    artifact: Artifact,
    inputs: Sequence[Batch],
    *,
    place: Place | None = None,
    task: Task | None = None,
    threads: int = 1,
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> Parity:
    """Run `artifact` at `place` (None: this process) with every kernel set its runtime has and compare.

    inputs: flat batches. task: its `evaluate` is run on the artefact where it has one and the place is this process.

    Raises:
        DeviceLost: the device went away. EdgeqError: the artefact does not run there.
    """
    place = place or Place()
    sets = backends.backend(artifact.backend).target.kernel_sets(place.info.abi)
    reports = []
    floats = [model.float(batch) for batch in inputs]
    qdq = [model.qdq(batch) for batch in inputs]
    read = model.read_by_outputs(inputs[0])
    for kernels, arithmetic in sets:
        stage = f"verify {artifact.backend} {kernels}".rstrip()
        progress(stage, 0, len(inputs))
        got = place.answers(artifact, inputs, kernels=kernels, threads=threads)
        curves = tried(model, artifact.backend, place, kernels, threads)
        wanted = []
        for done, batch in enumerate(inputs, start=1):
            wanted.append(model.simulate(batch, arithmetic, curves.tables))
            progress(stage, done, len(inputs))
        outputs = tuple(
            _compare(info, read[i], *[[run[i] for run in runs] for runs in (got, wanted, qdq, floats)])
            for i, info in enumerate(model.outputs)
        )
        metric, why = None, ""
        if task is not None and place.device is None and kernels == sets[-1][0]:
            try:
                metric = evaluate(task, place.predict(artifact, kernels=kernels, threads=threads))
            except EdgeqError as error:  # the parity is found, and is kept
                why = str(error) if "evaluate()" in str(error) else f"evaluate() failed: {error}"
        reports.append(KernelParity(kernels or "default", arithmetic, outputs, metric, curves, why))
    return Parity(artifact.backend, tuple(reports), len(inputs))


def _compare(
    info: TensorInfo, read: float, got: list[Tensor], wanted: list[Tensor], qdq: list[Tensor], floats: list[Tensor]
) -> OutputParity:
    """read: the largest value that the output is computed of, whose rounding is no difference of it."""
    a, b, c, f = (torch.stack([t.double() for t in runs]) for runs in (got, wanted, qdq, floats))
    if a.shape != b.shape:
        raise EdgeqError(
            f"output {info.name!r}: the artefact gives shape {tuple(got[0].shape)}, the program {info.shape}"
        )
    grid = info.qparams is not None
    step = (
        info.qparams.step
        if info.qparams is not None
        else max(_range(b) / 255, _rounding(b), 16 * torch.finfo(torch.float32).eps * read)
    )
    difference = apart(a, b) / step
    if grid:
        difference = difference.round()
    far = (apart(a, c) / step).max().item()
    return OutputParity(
        info.name,
        round(difference.max().item(), 4),
        (difference < 0.5).double().mean().item() if not grid else (difference == 0).double().mean().item(),
        round(far) if grid and math.isfinite(far) else round(far, 4),
        sqnr_db(f, a),
        not grid,
    )


def _range(values: Tensor) -> float:
    """Largest less smallest finite value; where all are one, how large it is."""
    finite = values[values.isfinite()]
    if finite.numel() == 0:
        return 1.0
    return max((finite.max() - finite.min()).item() or finite.abs().max().item(), 1e-30)


def _rounding(values: Tensor) -> float:
    """What two orders of a float32 sum may differ by: sixteen units in the last place of the largest finite value."""
    finite = values[values.isfinite()]
    return 16 * torch.finfo(torch.float32).eps * finite.abs().max().item() if finite.numel() else 0.0


@dataclass(frozen=True, slots=True)
class Parting:
    """The first tensor where an artefact's prefix and the simulation differ.

    layer: an integer layer, or the float island whose result was rounded to other integers. tie: of an island, how far
    from halfway between two integers the farthest of those results lies, in steps; None for an integer layer. Nearer
    than float32 rounds, either integer is right: a runtime whose sigmoid differs in the last bit takes the other.
    """

    layer: str
    max_lsb: float
    exact_share: float
    tie: float | None
    checked: int


def first_parting(
    model: QuantizedModel,
    backend: str,
    batch: Batch,
    *,
    place: Place | None = None,
    kernels: str = "",
    progress: Callable[[str, int, int | None], None] = lambda stage, done, total: None,
) -> Parting | None:
    """Export ever longer prefixes and find the first layer whose integers are not the simulation's.

    A prefix ends where the whole network does not, so a runtime may fuse it differently; bisection over the layers in
    order, so a difference that heals again is found only if it is the one the bisection meets. None: all agree.
    """
    engine, place = backends.backend(backend), place or Place()
    arithmetic = dict(engine.target.kernel_sets(place.info.abi))[kernels]
    wanted: dict[str, Tensor] = {}
    islands: dict[str, Tensor] = {}  # quantize nodes behind a float island, and what they round
    simulate(
        model.integers,
        batch,
        arithmetic,
        watch=lambda node, q: wanted.__setitem__(node.name, q),
        enters=lambda node, x: islands.__setitem__(node.name, x),
        tables=tried(model, backend, place, kernels).tables,
    )
    keys = cuts(model)
    ops = model.integers.ops
    names = [n for n in wanted if n in keys and (n in islands or ops[n].kind != "requantize")]
    grids = {n.name: tensor_qparams(n) for n in model.integers.module.graph.nodes if n.name in wanted}

    def scale(q: QParams) -> float:
        """As the artefact holds it."""
        half = torch.tensor(q.step).half().item() if backends.RUNTIMES[backend].half else math.inf
        return half if math.isfinite(half) else q.step

    def parts(index: int) -> Parting | None:
        name = names[index]
        got, q = _prefix(model, engine, place, keys[name], batch, kernels), grids[name]
        reference = (wanted[name].double() - q.zero) * q.step
        difference = ((got.double() - reference).abs() / q.step).round()
        if difference.max().item() == 0:
            return None
        share = (difference == 0).double().mean().item()
        tie = _tie(islands[name], scale(q), difference > 0) if name in islands else None
        return Parting(keys[name], difference.max().item(), share, tie, 0)

    low, high, found, checked = 0, len(names) - 1, None, 0
    while low <= high:
        middle = (low + high) // 2
        checked += 1
        progress(f"layers {backend}", checked, max(1, math.ceil(math.log2(len(names) + 1))))
        seen = parts(middle)
        if seen is None:
            low = middle + 1
        else:
            found, high = dataclasses.replace(seen, checked=checked), middle - 1
    return found


def _tie(x: Tensor, scale: float, chosen: Tensor) -> float:
    """How far from halfway between two integers the farthest of the `chosen` values of `x` lies, in steps."""
    steps = x.double()[chosen.reshape(x.shape)] / scale
    return float((steps - steps.floor() - 0.5).abs().max())


def _prefix(
    model: QuantizedModel, engine: backends.Backend, place: Place, key: str, batch: Batch, kernels: str
) -> Tensor:
    """The tensor `key` as the artefact of the program cut there computes it."""
    part = excerpt(model, None, (key,), "prefix")
    needed = {info.name for info in part.inputs}
    with tempfile.TemporaryDirectory() as folder:
        artifact = engine.lower(part.program, Path(folder), name="prefix", layers={})
        inputs = [x for x, info in zip(batch, model.inputs, strict=True) if info.name in needed]
        return place.answers(dataclasses.replace(artifact, backend=engine.name), [inputs], kernels=kernels)[0][0]


def parity_json(parity: Parity, artifact: Artifact, model: QuantizedModel) -> dict[str, object]:
    """A parity report as plain data, with what the artefact does with the network's layers."""
    return {
        "artifact": str(artifact.path),
        "max_lsb": parity.max_lsb,
        "exact_share": parity.exact_share,
        "qdq_lsb": parity.qdq_lsb,
        "sqnr_db": parity.sqnr_db,
        "metric": parity.metric,
        **({"metric_error": parity.metric_error} if parity.metric_error else {}),
        "kernels": {
            k.kernels: {
                "arithmetic": k.arithmetic,
                "max_lsb": k.max_lsb,
                "exact_share": k.exact_share,
                "qdq_lsb": k.qdq_lsb,
                "curves": k.curves.told(),
                "outputs": [dataclasses.asdict(o) for o in k.outputs],
            }
            for k in parity.kernels
        },
        **coverage_json(artifact, model),
        "size_bytes": size(artifact.path),
    }
