"""Why is it slow, or wrong: each cause with the time or the error that it holds, and what would change it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from edgeq.api import profile
from edgeq.assembly import silent
from edgeq.calib import written
from edgeq.given import inputs_of, named
from edgeq.graph.integer import QUANTIZE
from edgeq.graph.package import QuantizedModel
from edgeq.graph.store import result
from edgeq.run.compare import compared
from edgeq.run.coverage import inserted
from edgeq.run.files import find
from edgeq.run.source import task_of
from edgeq.run.tensors import tensors
from edgeq.search.bench import Bench
from edgeq.search.space import FLOAT
from edgeq.spec import EdgeqError, Progress
from edgeq.task import Task

Found = dict[str, Any]
LEAST = 0.002  # of the total: what takes less is not named
TRIED = 6  # layers, those where the error rises most, that are tried in float


def explain(
    model: QuantizedModel | str | Path,
    *,
    to: Sequence[str] = (),
    device: str = "host",
    task: str | Path | None = None,
    threads: int = 1,
    runs: int = 30,
    progress: Progress = silent,
) -> Found:
    """What holds the time of each artefact of `model`, and what makes its error, each ranked, with what would change it.

    Measures each artefact and its float twin (see edgeq.profile). The error's part is tried on calibration batches of the task:
    the layers where it rises most are put back into float one by one.
    Returns plain data, see docs/json.md: `backends` → `slow`, a list of causes with `ms` and `gain_ms`, the most that changing it
    would save by these measurements; `wrong`, a list of layers with `fall_db` and `gain_db`, what the outputs would gain.

    Raises:
        DeviceLost: the device went away. EdgeqError: nothing was exported, or nothing can be timed there.
    """
    model, to = named(model, to)
    source = task_of(model, task)
    inputs, origin = inputs_of(model, source, 1)
    timed = profile(model, to=to, device=device, threads=threads, runs=runs, progress=progress)
    rows = {name: row for name, row in timed["backends"].items() if "error" not in row and row.get("total_ms")}
    if not rows:
        raise EdgeqError(
            f"nothing of {model.folder} can be timed on {device}: name a runtime that runs there with --to"
        )
    parity = result(model.folder, "verify.json") if model.folder is not None and device == "host" else None
    found: Found = {"model": model.name, "device": device, "inputs": origin, "backends": {}, "wrong": [], "note": ""}
    for name, row in rows.items():
        verified = ((parity or {}).get("backends") or {}).get(name, {})
        found["backends"][name] = {
            "int8_ms": row["total_ms"]["median"],
            "float_ms": row["float"]["total_ms"]["median"] if row["float"] else None,
            "speedup": row["speedup"],
            "max_lsb": verified.get("max_lsb"),
            "slow": slow(model, name, row),
        }
    progress("what hurts the outputs", 0, None)
    found["wrong"], found["note"] = _wrong(model, inputs[0], source, progress)
    return found


def slow(model: QuantizedModel, backend: str, row: Mapping[str, Any]) -> list[Found]:
    """Causes of the time of one artefact, the largest gain first; `row`: of its profile.

    What one runtime fuses and float's does not is one cause: layers are compared as edgeq profile --compare does.
    """
    total, floating = row["total_ms"]["median"], row["float"]
    placed = {r.name: r for r in find(model, backend).coverage}
    islands = {
        key: r.reason for r in placed.values() if r.status == "float island" and not inserted(r) for key in r.layers
    }
    integers = {key for r in placed.values() if r.status == "integer" and not inserted(r) for key in r.layers}
    pairs = (
        compared(row, floating)
        if floating
        else [(tuple(r["layers"]), r["ms"], 0.0) for r in row["rows"] if r["layers"]]
    )
    known = [(keys, a, b) for keys, a, b in pairs if not keys[0].startswith("(")]
    fast = [(a, b) for keys, a, b in known if b > 0 and set(keys) <= integers]
    ratio = min(1.0, sum(a for a, _ in fast) / sum(b for _, b in fast)) if fast else 1.0
    causes = []
    for keys, int8, twin in known:
        held = [key for key in keys if key in islands]
        if held:
            gain = int8 * (1 - ratio)
            why = islands[held[0]] or model.islands.get(held[0], "")
            causes.append(_cause("float island", keys, int8, twin, gain, why, f"see why it stays in float: {held[0]}"))
        elif twin and int8 > twin:
            why = "its integer kernel is slower here than float's"
            causes.append(_cause("slower than float", keys, int8, twin, int8 - twin, why, _kept(keys)))
    causes += _others(row, model)
    named_ms = [c for c in causes if c["ms"] >= LEAST * total]
    return sorted(named_ms, key=lambda c: (-c["gain_ms"], -c["ms"]))


def _cause(what: str, keys: Sequence[str], ms: float, twin: float | None, gain: float, why: str, change: str) -> Found:
    return {
        "what": what, "layers": list(keys), "ms": ms, "float_ms": twin, "gain_ms": max(0.0, gain), "why": why, "change": change,
    }  # fmt: skip


def _kept(keys: Sequence[str]) -> str:
    """How a person keeps layers in float."""
    return " ".join(f"--keep-float '{key}'" for key in keys[:2]) + (
        "; conversions around it take their part" if keys else ""
    )


def _others(row: Mapping[str, Any], model: QuantizedModel) -> list[Found]:
    """What is no layer's: what converters put between them, by kind; what a runtime takes beside; what nothing accounts for."""
    floats = {r["name"]: r["ms"] for r in (row["float"] or {}).get("rows", ()) if r["kind"] != "operator"}
    together: dict[tuple[str, str], list[Any]] = {}
    for r in row["rows"]:
        if r["kind"] != "operator":
            word = r["name"].rpartition(" ")[2] if r["kind"] == "inserted" else r["name"]
            together.setdefault((r["kind"], word), []).append(r)
    islands = len(model.islands)
    found = []
    for (kind, name), rows in together.items():
        ms, keys = math.fsum(r["ms"] for r in rows), list(dict.fromkeys(key for r in rows for key in r["layers"]))
        if kind == "inserted":
            why = f"{len(rows)} × {name}, put between layers for a layout or a type"
            change = "fewer borders between integers and float" if islands else "none: it stands at the network's ends"
            found.append(_cause("conversion", keys, ms, None, ms if islands else 0.0, why, change))
        elif kind == "overhead":
            busy = name.startswith("waiting")
            change = "measure on a machine that does nothing else" if busy else "fewer pieces: fewer float islands"
            found.append(_cause(name, keys, ms, floats.get(name), ms if busy else 0.0, "no operator's time", change))
        else:
            found.append(_cause(name, keys, ms, floats.get(name), 0.0, "no row accounts for it", "none"))
    return found


def _wrong(
    model: QuantizedModel, batch: Sequence[Tensor], task: Task | None, progress: Progress
) -> tuple[list[Found], str]:
    """Layers where the error rises, the largest gain first, and a note where no gain could be tried."""
    rises = _rises(model, batch)
    if task is None:
        return rises[:TRIED], "what each would gain was not tried: the task file is not at hand; name it with --task"
    try:
        gains = _gains(model, task, [row["layer"] for row in rises], progress)
    except EdgeqError as error:
        return rises[:TRIED], f"what each would gain was not tried: {error}"
    tried = []
    for row in rises:
        unit = next((unit for unit in gains if row["layer"] in unit), None)
        if unit is not None:
            change = " ".join(f"--keep-float '{key}'" for key in unit)
            tried.append({**row, "layers": list(unit), "gain_db": gains.pop(unit), "change": change})
    return sorted(tried, key=lambda row: -row["gain_db"]), ""


def _rises(model: QuantizedModel, batch: Sequence[Tensor]) -> list[Found]:
    """Each quantized activation: how much nearer to float what it is made of was; the largest fall first."""
    seen = {t.key: t.sqnr_db for t in tensors(model, batch) if t.role != "weight"}
    ops = model.integers.ops
    of = {n.name: f"input {n.args[0]}" for n in model.integers.module.graph.nodes if n.target is QUANTIZE}
    of.update((op.name, op.layer) for op in ops.values())
    found = []
    for op in ops.values():
        if op.layer not in seen:
            continue
        before = [seen[of[name]] for name in op.inputs if of.get(name) in seen]
        best = min([*before, 120.0])
        fall = min(best, 120.0) - min(seen[op.layer], 120.0)
        found.append(
            {"layer": op.layer, "sqnr_db": seen[op.layer], "fall_db": fall, "gain_db": None, "layers": [], "change": ""}
        )
    return sorted(found, key=lambda row: -row["fall_db"])


def _gains(
    model: QuantizedModel, task: Task, layers: Sequence[str], progress: Progress
) -> dict[tuple[str, ...], float]:
    """Layers that go together → decibels that the outputs gain where they go back to float, on the calibration batches: those of
    the first few of `layers`."""
    recipe = written.planned(model.plan, str(model.folder))
    source = None if model.data is None else model.data.get("source")
    bench = Bench(
        task, model.plan.target, recipe=recipe, data=None if source in (None, "calibration", "arrays") else source
    )
    space = bench.planned(model.plan)
    whole = {unit.name: next(iter(unit.plans)) for unit in space.units}
    before = bench.noise(bench.model(space.plan(whole)).qdq)
    owner = {key: unit for unit in space.units for key in unit.layers}
    wanted = list({owner[key].name: owner[key] for key in layers if key in owner}.values())[:TRIED]
    gained = {}
    for done, unit in enumerate(wanted):
        progress("what hurts the outputs", done, len(wanted))
        with contextlib.suppress(EdgeqError):  # a plan that the target refuses is no remedy
            after = bench.noise(bench.model(space.plan(whole | {unit.name: FLOAT})).qdq)
            gained[unit.layers] = 10 * math.log10(before / after) if before > 0 and after > 0 else 0.0
    progress("what hurts the outputs", len(wanted), len(wanted))
    return gained
