"""Two profiles side by side: which is faster, as a whole and by layer, as far as the noise lets one say."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeq.run import measurements
from edgeq.schema import load as read_json
from edgeq.spec import EdgeqError, InstructionReport

Found = Mapping[str, Any]
Verdict = Literal["faster", "slower", "no difference seen", "too few runs"]

LEVEL = 0.95  # of the interval for whole inferences
LAYER_LEVEL = 0.999  # of a layer's: there are many, and none shall be named by chance
RESAMPLES = 2_000
SHIFT = (
    0.015  # how far medians of one file's profiles lie apart, as a standard deviation in logarithms (docs/results.md)
)
SHIFT_FREEDOM = 4  # degrees of freedom of that, beside those of a file's own earlier profiles
FEWEST = 10  # runs on each side below which no verdict is given: the blocks are too few to know the noise by
TICK_MS = 0.001  # XNNPACK's profiler counts these; two of them are no difference


@dataclass(frozen=True, slots=True)
class Ratio:
    """B's median over A's, with a bootstrap interval; None where there are too few runs, or a median is 0.

    verdict: of B, seen from A. `faster` or `slower` only where the whole interval is on one side of 1.
    """

    a_ms: float
    b_ms: float
    ratio: float | None
    low: float | None
    high: float | None
    verdict: Verdict


def ratio_of_medians(
    a: Sequence[float],
    b: Sequence[float],
    level: float = LEVEL,
    *,
    earlier: tuple[Sequence[float], Sequence[float]] = ((), ()),
) -> Ratio:
    """Is `b` faster than `a`? Both are milliseconds of runs in the order they were measured.

    earlier: medians of former profiles of what `a` timed, and of what `b` timed, on the same device.

    Medians are drawn by the circular block bootstrap (Politis and Romano, 1992), as neighbouring runs are alike: blocks of
    √n runs. Their spread, in logarithms, is the noise within a profile; what two profiles of one file differ by beyond it
    (memory laid out otherwise, clocks, neighbours) is added, see `between`. The interval has the quantile of Student's t,
    its degrees of freedom by Welch and Satterthwaite.
    """
    medians = float(np.median(a)), float(np.median(b))
    ratio = medians[1] / medians[0] if medians[0] > 0 else None
    if min(len(a), len(b)) < FEWEST:
        return Ratio(*medians, ratio, None, None, "too few runs")
    if ratio is None or abs(medians[0] - medians[1]) <= 2 * TICK_MS:
        return Ratio(*medians, ratio, None, None, "no difference seen")
    generator = np.random.default_rng(0)
    parts = [between(found) for found in earlier]
    for runs in (a, b):
        drawn = np.log(np.maximum(_medians(runs, generator), TICK_MS))
        blocks = len(runs) / _length(len(runs))
        parts.append((float(drawn.var()) * blocks / (blocks - 1), blocks - 1))
    variance = math.fsum(part for part, _ in parts)
    freedom = variance**2 / math.fsum(part**2 / n for part, n in parts)
    half = _student((1 + level) / 2, freedom) * math.sqrt(variance)
    low, high = ratio * math.exp(-half), ratio * math.exp(half)
    verdict: Verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference seen"
    return Ratio(*medians, ratio, low, high, verdict)


def between(earlier: Sequence[float]) -> tuple[float, float]:
    """Variance of a profile's median around those of its file's other profiles, in logarithms, and its degrees of freedom.

    It cannot be seen in one profile. `SHIFT` is its prior (scaled inverse chi-squared), and the medians of `earlier`
    profiles weigh as many as they are.
    """
    logarithms = np.log(np.maximum(earlier, TICK_MS)) if earlier else np.zeros(1)
    freedom = SHIFT_FREEDOM + len(logarithms) - 1
    spread = float(np.square(logarithms - logarithms.mean()).sum())
    return (SHIFT_FREEDOM * SHIFT**2 + spread) / freedom, freedom


def _length(runs: int) -> int:
    """Of a block of runs."""
    return max(1, round(math.sqrt(runs)))


def _medians(runs: Sequence[float], generator: np.random.Generator) -> NDArray[np.float64]:
    values, count = np.asarray(runs, np.float64), len(runs)
    length = _length(count)
    starts = generator.integers(0, count, (RESAMPLES, -(-count // length)))
    picked = (starts[:, :, None] + np.arange(length)).reshape(RESAMPLES, -1)[:, :count] % count
    return np.asarray(np.median(values[picked], axis=1), np.float64)


def _student(share: float, freedom: float) -> float:
    """Quantile of Student's t by Fisher's expansion; within 2 % from four degrees of freedom on (at 97.5 %)."""
    z = NormalDist().inv_cdf(share)
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + math.fsum(term / freedom ** (i + 1) for i, term in enumerate(terms))


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
    if re.fullmatch(r"#?[0-9]+", name) and not where.exists():
        kept = measurements.load(int(name.removeprefix("#")))
        if isinstance(kept.report, InstructionReport):
            raise EdgeqError(f"measurement {name} counted instructions on {kept.report.device}: there is no time in it")
        found = {kept.report.backend: {**dataclasses.asdict(kept.report), "model": kept.model}}
    else:
        file = where / "profile.json" if where.is_dir() else where
        hint = (
            f"run edgeq profile {where} first" if where.is_dir() else "name a model folder, a profile or a measurement"
        )
        told = read_json(file, f"{file}: there is no such profile; {hint}")
        rows = told.get("backends") if isinstance(told, dict) else None
        model = {"model": told.get("model")} if isinstance(told, dict) else {}
        found = {k: {**r, **model} for k, r in rows.items() if _is_report(r)} if isinstance(rows, dict) else {}
        if not found:
            raise EdgeqError(f"{file}: no latency in it; run edgeq profile again")
    if backend and backend not in found:
        raise EdgeqError(f"{name} has no profile of {backend}: there is {', '.join(found)}")
    return {backend: found[backend]} if backend else found


def _is_report(told: Any) -> bool:
    """Whether plain data has what is compared: a latency report, not counted instructions, a damaged row or another file's."""
    try:
        numbers = [
            *told["run_ms"],
            *(told.get("earlier_ms") or ()),
            *(ms for row in told["rows"] for ms in (row["ms"], *row["run_ms"])),
        ]
        words = [told["backend"], told["device"], *(row["kind"] for row in told["rows"])]
        layers = [key for row in told["rows"] for key in row["layers"]]
        fits = isinstance(told["threads"], int) and isinstance(told["versions"], dict) and len(told["run_ms"]) > 0
    except (TypeError, KeyError):
        return False
    floats = all(isinstance(n, (int, float)) and math.isfinite(n) and n >= 0 for n in numbers)
    return fits and floats and all(isinstance(word, str) for word in (*words, *layers))


def _pair(a: Found, b: Found) -> dict[str, Any]:
    sides = ("model", "backend", "device", "threads", "versions")
    earlier = earlier_of(a), earlier_of(b)
    return {
        "a": {key: a.get(key) for key in sides},
        "b": {key: b.get(key) for key in sides},
        "same_network": _same_network(a, b),
        "total": dataclasses.asdict(ratio_of_medians(a["run_ms"], b["run_ms"], earlier=earlier)),
        "layers": [
            {"layers": list(layers), **dataclasses.asdict(r)} for layers, r in _layers(_scaled(a), _scaled(b), earlier)
        ],
    }


def earlier_of(report: Found) -> list[float]:
    """Medians of its file's earlier profiles; none in reports of older versions."""
    return [float(ms) for ms in report.get("earlier_ms") or ()]


def _same_network(a: Found, b: Found) -> bool:
    """Whether both sides timed one network: most layers of the smaller one are in the other; by name where none are known."""
    layers_a, layers_b = ({key for row in side["rows"] for key in row["layers"]} for side in (a, b))
    if not layers_a or not layers_b:
        return a.get("model") == b.get("model")
    return 2 * len(layers_a & layers_b) >= min(len(layers_a), len(layers_b))


def compared(a: Found, b: Found) -> list[tuple[tuple[str, ...], float, float]]:
    """Layers of two reports (of latency, with rows) as each takes them: keys, A's milliseconds, B's.

    Rows that belong to no layer stand under their kind in brackets.
    """
    return [(layers, ratio.a_ms, ratio.b_ms) for layers, ratio in _layers(_scaled(a), _scaled(b), ((), ()))]


def _scaled(report: Found) -> list[Found]:
    """Rows whose single runs are multiplied as their times are, so that they add up to the untraced total."""
    scale = report.get("row_scale", 1.0)
    return [{**row, "run_ms": [ms * scale for ms in row["run_ms"]]} for row in report["rows"]]


class _Part(NamedTuple):
    """Rows of both sides that compute the same layers."""

    keys: set[str]
    a: list[Found]
    b: list[Found]


def _layers(
    a: Sequence[Found], b: Sequence[Found], earlier: tuple[Sequence[float], Sequence[float]]
) -> list[tuple[tuple[str, ...], Ratio]]:
    """Rows of both joined where they share a layer, in A's order; those without one by their kind.

    What one runtime fuses and the other does not is one entry, as no finer one is comparable. A layer's time is taken to
    shift between profiles as the whole's does.
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
            ratio = ratio_of_medians(runs_a, runs_b, LAYER_LEVEL, earlier=earlier)
        else:  # one side has no such row, or no runs of it, as unattributed time
            ms_a, ms_b = (math.fsum(row["ms"] for row in rows) for rows in (part.a, part.b))
            ratio = Ratio(ms_a, ms_b, ms_b / ms_a if ms_a > 0 else None, None, None, "too few runs")
        found.append((tuple(sorted(part.keys, key=lambda key: order.get(key, -1))), ratio))
    return found


def _runs(rows: Iterable[Found]) -> list[float]:
    """Milliseconds of `rows` together in each traced run; empty where one of them has no runs."""
    columns = [row["run_ms"] for row in rows]
    same = len({len(column) for column in columns}) == 1
    return [math.fsum(run) for run in zip(*columns, strict=True)] if same else []
