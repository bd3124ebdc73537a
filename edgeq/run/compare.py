"""Two profiles side by side: which is faster, as a whole and by layer, as far as the noise lets one say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.graph.package import read_json
from edgeq.run import measurements
from edgeq.spec import EdgeqError, InstructionReport

Found = Mapping[str, Any]
Verdict = Literal["faster", "slower", "no difference seen", "too few runs"]

LEVEL = 0.95  # of the interval for whole inferences
LAYER_LEVEL = 0.999  # of a layer's: there are many, and none shall be named by chance
RESAMPLES = 10_000
FEWEST = 5  # runs on each side below which no verdict is given
TICK_MS = 0.001  # XNNPACK's profiler counts these; two of them are no difference


@dataclass(frozen=True, slots=True)
class Ratio:
    """B's median over A's, with a bootstrap interval; None where there are too few runs, or A's median is 0.

    verdict: of B, seen from A. `faster` or `slower` only where the whole interval is on one side of 1.
    """

    a_ms: float
    b_ms: float
    ratio: float | None
    low: float | None
    high: float | None
    verdict: Verdict


def ratio_of_medians(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Ratio:
    """Is `b` faster than `a`? Both are milliseconds of runs in the order they were measured.

    The interval is of the moving block bootstrap (Künsch, 1989), as neighbouring runs are alike: blocks of √n runs are drawn
    with replacement. It knows the noise within the two measurements, not what changed between them.
    """
    medians = float(np.median(a)), float(np.median(b))
    if min(len(a), len(b)) < FEWEST:
        return Ratio(*medians, medians[1] / medians[0] if medians[0] > 0 else None, None, None, "too few runs")
    if abs(medians[0] - medians[1]) <= 2 * TICK_MS:
        return Ratio(*medians, medians[1] / medians[0] if medians[0] > 0 else None, None, None, "no difference seen")
    generator = np.random.default_rng(0)
    drawn = _medians(b, generator) / np.maximum(_medians(a, generator), TICK_MS)
    low, high = (float(q) for q in np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2)))
    verdict: Verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference seen"
    return Ratio(*medians, medians[1] / medians[0], low, high, verdict)


def _medians(runs: Sequence[float], generator: np.random.Generator) -> NDArray[np.float64]:
    values = np.asarray(runs, np.float64)
    length = max(1, round(math.sqrt(len(values))))
    blocks = -(-len(values) // length)
    starts = generator.integers(0, len(values) - length + 1, (RESAMPLES, blocks))
    picked = (starts[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, : len(values)]
    return np.asarray(np.median(values[picked], axis=1), np.float64)


def compare(a: str, b: str) -> dict[str, Any]:
    """Two profiles side by side, as plain data.

    a, b: a model folder, a file that `edgeq profile --json` printed, or the number of a measurement; `:BACKEND` behind it
    picks one runtime (`out:tvm`). Runtimes that both have are compared with each other; where each has one, these two.

    Raises:
        EdgeqError: there is no such profile, or the two have nothing in common.
    """
    first, second = reports(a), reports(b)
    if len(first) == len(second) == 1:
        pairs = [(next(iter(first.values())), next(iter(second.values())))]
    else:
        pairs = [(first[name], second[name]) for name in first if name in second]
    if not pairs:
        raise EdgeqError(
            f"{a} has {', '.join(first)} and {b} has {', '.join(second)}: name one runtime of each, as {a}:{next(iter(first))}"
        )
    return {"a": a, "b": b, "pairs": [_pair(x, y) for x, y in pairs]}


def reports(source: str) -> dict[str, Found]:
    """Backend → latency report of a model folder, a JSON file or a measurement's number, each with `:BACKEND` or without.

    Raises:
        EdgeqError: there is none.
    """
    name, _, backend = source.rpartition(":") if ":" in source and not Path(source).exists() else (source, "", "")
    where = Path(name)
    found: dict[str, Found]
    if name.removeprefix("#").isdigit() and not where.exists():
        kept = measurements.load(int(name.removeprefix("#")))
        if isinstance(kept.report, InstructionReport):
            raise EdgeqError(f"measurement {name} counted instructions on {kept.report.device}: there is no time in it")
        found = {kept.report.backend: dataclasses.asdict(kept.report)}
    else:
        file = where / "profile.json" if where.is_dir() else where
        hint = (
            f"run edgeq profile {where} first" if where.is_dir() else "name a model folder, a profile or a measurement"
        )
        told = read_json(file, f"{file}: there is no such profile; {hint}")
        found = {k: r for k, r in (told.get("backends") or {}).items() if isinstance(r, dict) and r.get("total_ms")}
        if not found:
            raise EdgeqError(f"{file}: no latency in it; run edgeq profile again")
    if backend and backend not in found:
        raise EdgeqError(f"{name} has no profile of {backend}: there is {', '.join(found)}")
    return {backend: found[backend]} if backend else found


def _pair(a: Found, b: Found) -> dict[str, Any]:
    return {
        "a": {key: a[key] for key in ("backend", "device", "threads", "versions")},
        "b": {key: b[key] for key in ("backend", "device", "threads", "versions")},
        "total": dataclasses.asdict(ratio_of_medians(a["run_ms"], b["run_ms"])),
        "layers": [{"layers": list(layers), **dataclasses.asdict(r)} for layers, r in _layers(a["rows"], b["rows"])],
    }


class _Part(NamedTuple):
    """Rows of both sides that compute the same layers."""

    keys: set[str]
    a: list[Found]
    b: list[Found]


def _layers(a: Sequence[Found], b: Sequence[Found]) -> list[tuple[tuple[str, ...], Ratio]]:
    """Rows of both joined where they share a layer, in A's order; those without one by their kind.

    What one runtime fuses and the other does not is one entry, as no finer one is comparable.
    """
    if not a or not b:
        return []
    parts: list[_Part] = []
    for rows, own in ((a, True), (b, False)):
        for row in rows:
            made = _Part(set(row["layers"]) or {f"({row['kind']})"}, [row] if own else [], [] if own else [row])
            touched = [part for part in parts if part.keys & made.keys]
            for part in reversed(touched):
                made = _Part(part.keys | made.keys, part.a + made.a, part.b + made.b)
            at = parts.index(touched[0]) if touched else len(parts)
            parts = [*parts[:at], made, *(part for part in parts[at:] if part not in touched)]
    order = {key: i for i, key in enumerate(key for row in (*a, *b) for key in row["layers"])}
    found = []
    for part in parts:
        runs_a, runs_b = _runs(part.a), _runs(part.b)
        if runs_a and runs_b:
            ratio = ratio_of_medians(runs_a, runs_b, LAYER_LEVEL)
        else:  # one side has no such row, or no runs of it, as unattributed time
            ms_a, ms_b = (math.fsum(row["ms"] for row in rows) for rows in (part.a, part.b))
            ratio = Ratio(ms_a, ms_b, ms_b / ms_a if ms_a > 0 else None, None, None, "too few runs")
        found.append((tuple(sorted(part.keys, key=lambda key: order.get(key, -1))), ratio))
    return found


def _runs(rows: Iterable[Found]) -> list[float]:
    """Milliseconds of `rows` together in each traced run; empty where one of them has no runs."""
    columns = [row["run_ms"] for row in rows]
    return [math.fsum(run) for run in zip(*columns, strict=True)] if columns else []
