"""One self-contained HTML page about a model folder: what was made, how true it is, how fast, and why."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeq import backends
from edgeq.calib.data.sources import kind
from edgeq.calib.recipes import RECIPES
from edgeq.calib.written import told, written
from edgeq.graph.capture import leaves_like
from edgeq.graph.package import QuantizedModel
from edgeq.graph.store import read_manifest, result
from edgeq.pages import template, words
from edgeq.pages.thumbnails import thumbnails
from edgeq.run.coverage import coverage_json, program_counts
from edgeq.run.files import exported, find, sizes
from edgeq.run.source import task_of
from edgeq.run.tensors import TensorStats, tensors
from edgeq.spec import Artifact, EdgeqError
from edgeq.task import batches, example

Found = Mapping[str, Any]
Bar = tuple[str, str, float, str, float]
STATUSES = ("integer", "table", "eligible", "float island")
SLOWEST = 12  # bars shown before the rest is folded away
WORST = 5  # tensors named under the error plot
AXIS_DB = 60.0  # top of the error plot: int8 reaches about 50 dB, so this is "nothing lost"


def write_page(model: QuantizedModel, path: Path, task: str | Path | None = None) -> Path:
    """Write the page to `path`, whole or not at all; returns `path`.

    Reads what lies in the model's folder: exported artefacts, verify.json, profile.json, and those of other devices. What
    is missing is named together with the command that makes it. Tensor statistics come from the first calibration batch
    of `task`, else of the task file that was quantized where it is still the same, else from the synthetic golden input.

    Raises:
        EdgeqError: jinja2 is not installed, the model is not saved, or verify.json or profile.json was changed.
    """
    return template.write("page.html", contents(model, task), path)


def contents(model: QuantizedModel, task: str | Path | None = None) -> dict[str, Any]:
    """Everything the template shows, as plain data."""
    if model.folder is None:
        raise EdgeqError("the model is not saved yet: call model.save(folder) first, then report it")
    parity, latency = result(model.folder, "verify.json"), result(model.folder, "profile.json")
    runtimes = _runtimes(model, parity, latency)
    batch, source = _batch(model, task)
    stats = tensors(model, batch)
    layers = _layers(model, stats)
    counted = program_counts(model)
    return {
        "name": model.name,
        "plan": model.plan,
        "origin": words.origin(model.data),
        "pictures": thumbnails(model.distilled),
        "operators": counted["operators"],
        "macs": counted["macs"],
        "weight_only": sum(row["became"] == "int8 weights" for row in layers),
        "verdicts": _verdicts(model, runtimes, parity, latency),
        "runtimes": runtimes,
        "parity": parity,
        "latency": latency,
        "elsewhere": _elsewhere(model.folder),
        "estimated": any(o["equivalent"] for o in _outputs(parity)),
        "accuracy": _accuracy(parity),
        "slowest": SLOWEST,
        "columns": _columns(stats),
        "worst": sorted((s for s in stats if s.role == "activation"), key=lambda s: s.sqnr_db)[:WORST],
        "axis": AXIS_DB,
        "layers": layers,
        "statistics": source,
        "data": _data(stats),
        "inputs": model.inputs,
        "outputs": model.outputs,
        "versions": _versions(model, parity, latency),
        "commands": _commands(model, runtimes),
        "folder": model.folder.name,
        "first": next(iter(backends.RUNTIMES)),
    }


@dataclass(frozen=True, slots=True)
class Runtime:
    """One backend as the page shows it. Parity and latency are the backend's rows of verify.json and profile.json.

    size: in words, beside float's. counts: status → layers of the network; layered: the same in words. int8: the latency
    report of its artefact, floating that of the float twin.
    bars: (label, all layers, milliseconds, status, share of the longest bar) of each operator of a measured run, slowest
    first. others: the same of what belongs to no operator.
    """

    name: str
    artifact: str
    size: str
    counts: dict[str, int]
    layered: str
    placed: list[words.Placed]
    notes: tuple[str, ...]
    parity: Found | None
    int8: Found | None
    floating: Found | None
    speedup: float | None
    timed: bool
    bars: list[Bar]
    others: list[Bar]

    @property
    def float_ms(self) -> float | None:
        """Measured time of float islands; None where no row of the profile is known to be one."""
        times = [p.ms for p in self.placed if p.status == "float island" and p.ms is not None]
        return sum(times) if times else None

    @property
    def operators(self) -> int:
        """Layers of the network."""
        return sum(self.counts.values())


def _runtimes(model: QuantizedModel, parity: Found | None, latency: Found | None) -> list[Runtime]:
    found = []
    for name in exported(model, elsewhere=True):
        artifact = find(model, name)
        times = (latency or {}).get("backends", {}).get(name) or {}
        int8, floating = (report if (report or {}).get("total_ms") else None for report in (times, times.get("float")))
        rows, others = words.parted(int8["rows"] if int8 else ())
        longest = max((row["ms"] for row in rows), default=0.0) or 1.0
        coverage = [dataclasses.asdict(row) for row in artifact.coverage]
        counted = coverage_json(artifact, model)
        found.append(
            Runtime(
                name=name,
                artifact=artifact.path.name,
                size=words.sized(sizes(artifact, model)),
                counts={status: counted[f"{status.split()[0]}_ops"] for status in STATUSES},
                layered=words.layered(counted),
                placed=words.grouped(coverage, rows),
                notes=artifact.notes,
                parity=(parity or {}).get("backends", {}).get(name),
                int8=int8,
                floating=floating,
                speedup=times.get("speedup"),
                timed="total_ms" in times,
                bars=_bars(artifact, rows, longest),
                others=[
                    (row["name"], row["name"], row["ms"], "hatch", min(1.0, row["ms"] / longest)) for row in others
                ],
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What was found on another device. counted: it is emulated, so that it has instruction counts and no times.

    rows: (runtime, its row of verify.<device>.json, its row of profile.<device>.json, its slowest bars).
    """

    name: str
    model: str
    counted: bool
    rows: list[tuple[str, Found | None, Found | None, list[Bar]]]


def _elsewhere(folder: Path) -> list[Elsewhere]:
    """Every other device that artefacts were verified or profiled on, by name."""
    found: dict[str, dict[str, Found]] = {}
    for verb in ("verify", "profile"):
        for path in sorted(folder.glob(f"{verb}.*.json")):
            told = result(folder, path.name)
            if told is not None:
                found.setdefault(told["device"], {})[verb] = told
    return [_device(name, told.get("verify"), told.get("profile")) for name, told in sorted(found.items())]


def _device(name: str, parity: Found | None, latency: Found | None) -> Elsewhere:
    verified, profiled = ((told or {}).get("backends", {}) for told in (parity, latency))
    rows: list[tuple[str, Found | None, Found | None, list[Bar]]] = []
    for backend in dict.fromkeys([*verified, *profiled]):
        timed, _ = words.parted((profiled.get(backend) or {}).get("rows") or ())
        slowest = sorted(timed, key=lambda row: -row["ms"])[:SLOWEST]
        bars = [
            (
                words.label(row),
                ", ".join(row["layers"]) or row["name"],
                row["ms"],
                "unknown",
                row["ms"] / slowest[0]["ms"],
            )
            for row in slowest
            if row["ms"] > 0
        ]
        rows.append((backend, verified.get(backend), profiled.get(backend), bars))
    model = next((row["device"] for row in profiled.values() if row.get("device")), "")
    return Elsewhere(name, "" if model == name else model, name.startswith("emulated:"), rows)


def _bars(artifact: Artifact, rows: Sequence[Found], longest: float) -> list[Bar]:
    by_name: dict[str, str] = {r.name: r.status for r in artifact.coverage}
    by_layers: dict[tuple[str, ...], str] = {r.layers: r.status for r in artifact.coverage if r.layers}
    bars: list[Bar] = []
    for row in rows:
        status = by_name.get(row["name"]) or by_layers.get(tuple(row["layers"])) or "unknown"
        full = ", ".join(row["layers"]) or row["name"]
        bars.append((words.label(row), full, row["ms"], status, row["ms"] / longest))
    return bars


def _verdicts(
    model: QuantizedModel, runtimes: Sequence[Runtime], parity: Found | None, latency: Found | None
) -> list[tuple[str, str]]:
    """(mark, sentence), what is wrong first: a slower backend, then parity beyond 1 LSB."""
    shown = [("warn", sentence) for sentence in words.slower(latency)]
    verified = (parity or {}).get("backends", {})
    shown += words.parity(verified)
    if sentence := words.far((parity or {}).get("far", model.far), verified):
        shown.append(("warn", sentence))
    if parity and parity["float_metric"]:
        shown.append(("info", _accuracy_verdict(parity)))
    shown += [("good", sentence) for sentence in words.faster(latency)]
    shown += [("info", sentence) for sentence in words.unsteady(latency)]
    untimed = [words.title(r.name) for r in runtimes if r.timed and r.int8 is None]
    if untimed:
        shown.append(("info", f"{words.join(untimed)} cannot be timed on this host, so no latency is claimed for it."))
    if not runtimes:
        shown.append(("info", "Nothing is exported yet."))
    elif model.islands:
        shown.append(("info", f"{len(model.islands)} of the network's layers stay in float, for the reasons below."))
    return sorted(shown, key=lambda verdict: verdict[0] != "warn")


def _accuracy_verdict(parity: Found) -> str:
    """Each metric in float, quantized, and over the artefacts; what is infinite or unknown is left out."""
    said = []
    for metric in parity["float_metric"]:
        reached = [r["metric"].get(metric) for r in parity["backends"].values() if r["metric"]]
        known = [value for value in reached if _finite(value)]
        floating, qdq = parity["float_metric"][metric], (parity["qdq_metric"] or {}).get(metric)
        stages = [
            (words.plain(floating), "in float", _finite(floating)),
            (words.plain(qdq), "quantized", _finite(qdq)),
            (_span(known), "in the artefacts", bool(known)),
        ]
        if any(there for _, _, there in stages):
            said.append(f"{metric} " + ", ".join(f"{value} {where}" for value, where, there in stages if there))
    return "; ".join(said) + "."


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _span(values: Sequence[float]) -> str:
    low, high = (words.plain(end) for end in (min(values, default=None), max(values, default=None)))
    return low if low == high else f"{low} to {high}"


def _accuracy(parity: Found | None) -> list[tuple[str, dict[str, tuple[float | None, float | None]]]]:
    """(who, metric → (value, distance to float)) for float, the QDQ program and every backend with a metric."""
    if not parity or not parity["float_metric"]:
        return []
    base = parity["float_metric"]
    rows = [("Float network", base), ("Quantized program (QDQ)", parity["qdq_metric"])]
    rows += [(words.title(n), r["metric"]) for n, r in parity["backends"].items()]
    return [
        (who, {m: (v, None if values is base else _distance(v, base.get(m))) for m, v in values.items()})
        for who, values in rows
        if values
    ]


def _distance(value: float | None, reference: float | None) -> float | None:
    if value is None or reference is None or not math.isfinite(value - reference):
        return None
    return value - reference


def _outputs(parity: Found | None) -> list[Found]:
    """Every output of every kernel set of every backend."""
    rows = (parity or {}).get("backends", {}).values()
    return [output for row in rows for kernels in row["kernels"].values() for output in kernels["outputs"]]


def _columns(stats: Sequence[TensorStats]) -> list[tuple[int, TensorStats, float]]:
    """(index into the page's data, tensor, height in percent) of the error plot's columns."""
    return [
        (i, s, 100 * min(max(s.sqnr_db, 0.5), AXIS_DB) / AXIS_DB)
        for i, s in enumerate(stats)
        if s.role != "weight" and not math.isnan(s.sqnr_db)
    ]


def _layers(model: QuantizedModel, stats: Sequence[TensorStats]) -> list[dict[str, Any]]:
    """One row for each operator of the float network, in order: its precision and what became of it."""
    activations = {s.key: s for s in stats if s.role == "activation"}
    weights = {s.key: s for s in stats if s.role == "weight"}
    rows = []
    for key in dict.fromkeys([*model.plan.layers, *model.islands]):
        precision = model.plan.layers.get(key, "fp32")
        if key in activations and key not in model.islands:
            became, why = "integer", ""
        elif key in weights:
            became, why = "int8 weights", "computed in float"
        elif key in model.islands:
            became, why = "float", model.islands[key]
        elif precision == "fp16":
            became, why = "float16", ""
        else:
            became, why = "fused clip", ""
        rows.append({
            "key": key, "precision": precision, "became": became, "why": why,
            "activation": activations.get(key), "weight": weights.get(key),
        })  # fmt: skip
    return rows


def _data(stats: Sequence[TensorStats]) -> str:
    """Histograms as compact JSON that is safe inside a script element; numbers to 5 digits, null for infinite."""

    def short(value: float) -> float | None:
        return float(f"{value:.5g}") if math.isfinite(value) else None

    rows = [
        {
            "key": s.key, "role": s.role, "kind": s.kind, "shape": s.shape, "db": short(s.sqnr_db),
            "scale": short(s.scale), "zero": s.zero_point, "low": short(s.low), "high": short(s.high),
            "min": short(s.minimum), "max": short(s.maximum), "clipped": short(s.clipped), "counts": s.counts,
            "channels": [short(c) for c in s.channels] if s.channels else None,
        }
        for s in stats
    ]  # fmt: skip
    return template.embedded(rows)


def _versions(model: QuantizedModel, parity: Found | None, latency: Found | None) -> list[tuple[str, list[str]]]:
    """Package → version when quantized, verified, profiled; a stage that has not happened reads –."""
    assert model.folder is not None
    stages = [read_manifest(model.folder).versions, *((f or {}).get("versions", {}) for f in (parity, latency))]
    names = dict.fromkeys(name for stage in [*stages, backends.versions()] for name in stage)
    return [(name, [stage.get(name, words.NOTHING) for stage in stages]) for name in names]


def _commands(model: QuantizedModel, runtimes: Sequence[Runtime]) -> list[str]:
    assert model.folder is not None
    folder = model.folder.name
    task = Path(model.task).name if model.task else "TASK.py"
    to = " ".join(f"--to {name}" for name in ([r.name for r in runtimes] or backends.RUNTIMES))
    return [
        f"edgeq quantize {task} {_recipe(model)} -o {folder}",
        f"edgeq export {folder} {to}",
        f"edgeq verify {folder}",
        f"edgeq profile {folder}",
        f"edgeq report {folder}",
    ]


def _recipe(model: QuantizedModel) -> str:
    """The options that give the same recipe and data again: their names, or the plan where options were changed."""
    known, data = RECIPES.get(model.plan.recipe), model.plan.data
    usual = data is None or dict(data) == told(kind(data["source"])())
    if usual and known is not None and tuple(map(dict, model.plan.steps)) == tuple(map(dict, written(known))):
        made_up = f" --data {data['source']}" if data is not None else ""
        return f"--recipe {known.name} --target {model.plan.target}{made_up}"
    return f"--plan {model.folder.name if model.folder else ''}/plan.json"


def _batch(model: QuantizedModel, given: str | Path | None) -> tuple[Sequence[Tensor], str]:
    """Flat inputs for the statistics, and in words where they come from."""
    try:
        if (task := task_of(model, given)) and (task.calibration is not None or not model.distilled):
            for raw in islice(batches(task), 1):
                return leaves_like(example(task), raw, "the first calibration batch"), "the first calibration batch"
    except EdgeqError as error:
        if given is None:
            return model.golden, f"the synthetic golden input (the task's data is not there: {error})"
        raise
    if model.distilled:
        return model.distilled[0], "the first made-up calibration batch"
    return model.golden, "the synthetic golden input"
