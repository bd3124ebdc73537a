"""What changed between two model folders, and which of it is a regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeq.graph.store import plain_name, read_manifest, recorded, result, unchanged
from edgeq.run.compare import earlier_of, ratio_of_medians, reports
from edgeq.run.condition import COUNTS
from edgeq.run.files import size
from edgeq.schema import load as read_json
from edgeq.spec import EdgeqError

Found = Mapping[str, Any]

LARGER = 1.01  # an artefact's bytes, new over old, beyond which it is a regression
LOST_DB = 1.0  # of the signal to noise ratio against float
AWAY = 0.01  # of float's metric: how much further from it the artefact's may be


def diff(old: str | Path, new: str | Path) -> dict[str, Any]:
    """Compare two folders that `edgeq quantize` wrote, in what both have; its shape is described in docs/json.md.

    Plan and numbers are told, and are no regression by themselves. A regression is: a runtime no longer exported, more
    layers in float, an artefact over 1 % larger, a larger difference from the simulation or fewer equal elements, 1 dB less
    against float, a metric further from its own float network's by 1 % of it, a median that is slower by its interval.

    Raises:
        EdgeqError: one of them is no such folder, or a file in it is damaged.
    """
    a, b = _contents(Path(old)), _contents(Path(new))
    found: dict[str, Any] = {
        "old": str(old),
        "new": str(new),
        **{key: {"old": a["plan"][key], "new": b["plan"][key]} for key in ("target", "recipe")},
        "plan": _changed(a["plan"]["layers"], b["plan"]["layers"]),
        "numbers": _changed(a["numbers"], b["numbers"]),
        "metric": {
            which: {name: _two(x.get(name), y.get(name)) for name in dict.fromkeys([*x, *y])}
            for which in ("float_metric", "qdq_metric")
            for x, y in [(a["verify"].get(which) or {}, b["verify"].get(which) or {})]
        },
        "backends": {name: _backend(name, a, b) for name in dict.fromkeys([*a["backends"], *b["backends"]])},
    }
    return {**found, "regressions": list(_regressions(found))}


def _contents(root: Path) -> dict[str, Any]:
    """What the folder's files say; empty where a verb has not been run."""
    manifest = read_manifest(root)
    for name in ("plan.json", "qparams.json"):
        unchanged(root / name, manifest.files[name])
    try:
        latency = reports(str(root)) if (root / "profile.json").is_file() else {}
    except EdgeqError:  # instructions alone
        latency = {}
    verified = result(root, "verify.json") or {}
    return {
        "plan": read_json(root / "plan.json", f"{root / 'plan.json'}: missing; quantize again"),
        "numbers": read_json(root / "qparams.json", f"{root / 'qparams.json'}: missing; quantize again")["tensors"],
        "verify": verified,
        "parity": verified.get("backends", {}),
        "latency": latency,
        "backends": {path.parent.name: _artefact(root, path) for path in sorted(root.glob("*/model.json"))},
    }


def _artefact(root: Path, path: Path) -> dict[str, Any]:
    """Layers by what they run as, and bytes, of an exported artefact."""
    described = read_json(recorded(root, path, f"run edgeq export {root} --to {path.parent.name}"), "")
    file = path.parent / plain_name(described["artifact"], path)
    return {
        **{name: value for name, value in (described.get("counts") or {}).items() if name != "inserted"},
        "size_bytes": size(file) if file.exists() else None,
    }


def _two(old: Any, new: Any) -> dict[str, Any]:
    return {"old": old, "new": new}


def _changed(old: Found, new: Found) -> dict[str, dict[str, Any]]:
    """The keys whose values differ, with both; None where one side has no such key."""
    keys = dict.fromkeys([*old, *new])
    return {key: _two(old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _backend(name: str, a: Found, b: Found) -> dict[str, Any]:
    """One runtime on both sides."""
    x, y = ({**side["parity"].get(name, {}), **side["backends"].get(name, {})} for side in (a, b))
    counts = (*COUNTS, "max_lsb", "exact_share", "qdq_lsb", "sqnr_db")
    metrics = [(side.get("metric") or {}) for side in (x, y)]
    return {
        "exported": _two(name in a["backends"], name in b["backends"]),
        "verified": _two(name in a["parity"], name in b["parity"]),
        **{count: _two(x.get(count), y.get(count)) for count in counts},
        "metric": {m: _two(metrics[0].get(m), metrics[1].get(m)) for m in dict.fromkeys([*metrics[0], *metrics[1]])},
        "latency": _latency(a["latency"].get(name), b["latency"].get(name)),
    }


def _latency(old: Found | None, new: Found | None) -> dict[str, Any] | None:
    """The verdict on whole inferences with its interval; None unless both were timed on like devices and threads."""
    if old is None or new is None or (old["device"], old["threads"]) != (new["device"], new["threads"]):
        return None
    return dataclasses.asdict(
        ratio_of_medians(old["run_ms"], new["run_ms"], earlier=(earlier_of(old), earlier_of(new)))
    )


def _regressions(found: Found) -> Iterator[str]:
    """A sentence for each thing that is worse."""
    floats = found["metric"]["float_metric"]
    for name, row in found["backends"].items():
        if row["exported"]["old"] and not row["exported"]["new"]:
            yield f"{name}: no longer exported"
            continue
        old, new = ({key: row[key][side] for key in row if key not in ("metric", "latency")} for side in ("old", "new"))
        if _both(old, new, "float_ops") and new["float_ops"] > old["float_ops"]:
            yield f"{name}: {new['float_ops']} layers in float, {old['float_ops']} before"
        if _both(old, new, "size_bytes") and new["size_bytes"] > LARGER * old["size_bytes"]:
            yield f"{name}: {new['size_bytes']:,} bytes, {old['size_bytes']:,} before"
        if old["verified"] and new["verified"]:
            yield from _worse_parity(name, old, new)
        for metric, values in row["metric"].items():
            reference = floats.get(metric, _two(None, None))
            if None in (*values.values(), *reference.values()):
                continue
            before, now = (abs(values[side] - reference[side]) for side in ("old", "new"))
            if now - before > AWAY * max(abs(reference["new"]), 1e-12):
                yield f"{name}: {metric} {values['new']:.4g}, {values['old']:.4g} before (float {reference['new']:.4g})"
        if (row["latency"] or {}).get("verdict") == "slower":
            told = row["latency"]
            yield (
                f"{name}: {told['b_ms']:.3g} ms, {told['a_ms']:.3g} ms before "
                f"({told['ratio']:.2f}×, {told['low']:.2f} to {told['high']:.2f})"
            )


def _both(old: Found, new: Found, key: str) -> bool:
    return old[key] is not None and new[key] is not None


def _worse_parity(name: str, old: Found, new: Found) -> Iterator[str]:
    """Where artefact and simulation, or artefact and float, are further apart; null is infinite, as verify writes it."""
    infinite = float("inf")
    before, now = (infinite if side["max_lsb"] is None else side["max_lsb"] for side in (old, new))
    if now > before:
        yield f"{name}: max LSB {now:g}, {before:g} before"
    elif new["exact_share"] < old["exact_share"]:
        yield f"{name}: {new['exact_share']:.2%} equal, {old['exact_share']:.2%} before"
    if old["sqnr_db"] is not None and new["sqnr_db"] is not None and new["sqnr_db"] < old["sqnr_db"] - LOST_DB:
        yield f"{name}: {new['sqnr_db']:.1f} dB against float, {old['sqnr_db']:.1f} dB before"
    elif old["sqnr_db"] is None and new["sqnr_db"] is not None:
        yield f"{name}: {new['sqnr_db']:.1f} dB against float, equal to it before"
