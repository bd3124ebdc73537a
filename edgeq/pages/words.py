"""How the terminal and the page say a number, a verdict and a coverage table, so that both say the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeq import backends

NOTHING = "–"
FLOAT_NOISE = 1e-4  # of a step: what float32 rounds in a few operators on values of up to 127 steps
ORDER = {"float island": 0, "eligible": 1, "table": 2, "integer": 3}  # what a reader must see first


def title(backend: str) -> str:
    """A runtime's name as its makers write it."""
    return backends.title(backend)


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits without an exponent where that is short; – for nothing, ∞ for infinite."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude > 6:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    return f"{value:.{max(0, digits - 1 - magnitude)}f}".replace("-", "−")


def duration(ms: float) -> str:
    """Milliseconds with three significant digits, none of them below a tenth of a microsecond."""
    return number(ms) if ms >= 0.01 or ms == 0 else f"{ms:.4f}"


def plain(value: float | None) -> str:
    """A metric or an LSB count: up to four digits behind the point, trailing zeros left out."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:.4f}".rstrip("0").rstrip(".").replace("-", "−") or "0"


def share(value: float | None) -> str:
    """A share in percent, rounded down: only what is whole reads 100 %, only what is nothing reads 0 %."""
    if value is None:
        return NOTHING
    if value in (0, 1):
        return f"{value * 100:.0f} %"
    floored = math.floor(value * 1e4) / 100
    return f"{floored:.2f} %" if floored > 0 else "< 0.01 %"


def percent(value: float) -> str:
    """A part of a measured whole, in percent to two digits."""
    return f"{value * 100:.0f} %" if value >= 0.0995 or value == 0 else f"{value * 100:.1f} %"


def sized(row: Mapping[str, Any]) -> str:
    """An artefact's size beside float's: `2.66 MB (float 5.1 MB)`."""
    what = "float" if row["float_size_of"] == "artefact" else "float weights"
    return f"{size(row['size_bytes'])} ({what} {size(row['float_size_bytes'])})"


def layered(row: Mapping[str, Any]) -> str:
    """What a runtime does with the network's layers, and what a converter put beside them:
    `4 of 7 layers in integers (83 % of multiply-accumulates), 3 in float; 29 inserted beside them: 29 TRANSPOSE`."""
    kinds = (
        ("integer", "in integers"),
        ("table", "as tables between them"),
        ("eligible", "eligible for integers"),
        ("float", "in float"),
    )
    of = sum(row[f"{kind}_ops"] for kind, _ in kinds)
    work = sum(row[f"{kind}_macs"] for kind, _ in kinds)
    said: list[str] = []
    for kind, words in kinds:
        count, macs = row[f"{kind}_ops"], row[f"{kind}_macs"]
        if count or (kind == "integer" and not row["eligible_ops"]):
            part = f" ({percent(macs / work)} of multiply-accumulates)" if work and kind != "float" else ""
            said.append(f"{count} of {of} layers {words}{part}" if not said else f"{count} {words}{part}")
    beside = [f"{count} {kind}" for kind, count in row["inserted"].items()]
    return ", ".join(said) + (f"; inserted beside them: {join(beside)}" if beside else "")


def decibel(value: float | None) -> str:
    """dB with one digit; ∞ where nothing differs (null in JSON too)."""
    return "∞" if value is None or math.isinf(value) else f"{value:.1f}".replace("-", "−")


def ap(value: float | None) -> str:
    """An average precision in percent with one digit, as its literature gives it."""
    return number(value) if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def points(value: float | None, reference: float | None) -> float | None:
    """Points of AP between the two as `ap` says them, so that a reader's subtraction comes out the same."""
    if value is None or reference is None or not math.isfinite(value - reference):
        return None
    return round(round(100 * value, 1) - round(100 * reference, 1), 1)


def signed(value: float | None) -> str:
    """A difference in points with its sign: `−3.1`, `+0.2`, `±0`."""
    return NOTHING if value is None else f"{value:+.1f}".replace("-", "−") if value else "±0"


def size(count: int) -> str:
    """Bytes in kB or MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def speed(row: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Median milliseconds of int8 and of float, and float over int8, out of one backend's profile."""
    int8, floating = (((r or {}).get("total_ms") or {}).get("median") for r in (row, row.get("float")))
    return int8, floating, row.get("speedup")


def slower(found: Mapping[str, Any] | None) -> list[str]:
    """One sentence for each backend of a profile whose int8 artefact is slower than its float twin, and one for all of
    which the noise does not let one say."""
    sentences, unknown = [], []
    for name, row in (found or {}).get("backends", {}).items():
        int8, floating, gain = speed(row)
        if gain is not None and not told_apart(row):
            unknown.append(f"{title(name)} {gained(row)}")
        elif gain is not None and gain < 1:
            between = f" ({gained(row)})" if row.get("speedup_interval") else ""
            sentences.append(
                f"{title(name)}: int8 is slower than float here, {number(int8)} ms against {number(floating)} ms{between}."
            )
    if unknown:
        sentences.append(
            f"Whether int8 is faster than float cannot be told on this busy device: {join(unknown)}; measure more runs, or"
            " with nothing else running."
        )
    return sentences


def faster(found: Mapping[str, Any] | None) -> list[str]:
    """A sentence with all backends of a profile whose int8 artefact is not slower than its float twin; none without one."""
    gains = [
        f"{title(name)} {gained(row)}"
        for name, row in (found or {}).get("backends", {}).items()
        if row.get("speedup") is not None and row["speedup"] >= 1 and told_apart(row)
    ]
    return [f"int8 is faster than float on the same runtime: {join(gains)}."] if gains else []


def told_apart(row: Mapping[str, Any]) -> bool:
    """Whether a backend's speed-up is one beyond the noise: 1 lies outside its interval. Profiles of older versions, which
    have no interval, are taken at their word; too few runs for one tell nothing."""
    if "speedup_interval" not in row:
        return True
    interval = row["speedup_interval"]
    return interval is not None and not interval[0] <= 1 <= interval[1]


def gained(row: Mapping[str, Any]) -> str:
    """A backend's speed-up and its interval: `2.55× (2.31× to 2.80×)`."""
    interval = row.get("speedup_interval")
    if interval is None:
        return f"{row['speedup']:.2f}×" + (" (too few runs)" if "speedup_interval" in row else "")
    return f"{row['speedup']:.2f}× ({interval[0]:.2f}× to {interval[1]:.2f}×)"


def medians(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A demo's backends with their `latency_ms`, as a profile that `speed`, `slower` and `faster` read."""
    found = {}
    for name, row in rows.items():
        int8, floating = ((row["latency_ms"] or {}).get(k) for k in ("int8", "float"))
        found[name] = {
            "total_ms": {"median": int8} if int8 is not None else None,
            "float": {"total_ms": {"median": floating}} if floating is not None else None,
            "speedup": floating / int8 if int8 and floating is not None else None,
        }
        if "speedup_interval" in (row["latency_ms"] or {}):
            found[name]["speedup_interval"] = row["latency_ms"]["speedup_interval"]
    return {"backends": found}


def curves(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the kernels that an app gets make of a network's curves; empty where that is not told."""
    sets = list(row.get("kernels", {}).values())
    found: Mapping[str, Any] = sets[-1].get("curves", {}) if sets else {}
    return found


def parity(rows: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(mark, sentence) of how far backends' artefacts are from their simulations; what was not compared is left out."""
    known = {name: dict(row) for name, row in rows.items() if row["exact_share"] is not None}
    for row in known.values():
        row["max_lsb"] = math.inf if row["max_lsb"] is None else row["max_lsb"]  # JSON has no other way to say it
    far = [f"{title(n)} by {plain(r['max_lsb'])} LSB" for n, r in known.items() if r["max_lsb"] > 1]
    exact = [title(n) for n, r in known.items() if r["max_lsb"] == 0]
    near = [
        f"{title(n)} ({share(r['exact_share'])} of its elements equal)"
        for n, r in known.items()
        if 0 < r["max_lsb"] <= 1
    ]
    said = [("warn", f"Further than 1 LSB from its own simulation: {join(far)}.")] if far else []
    if exact:
        equal = "equals its runtime's simulation" if len(exact) == 1 else "equal their runtimes' simulation"
        said.append(("good", f"{join(exact)} {equal} in every element."))
    if near:
        said.append(("good", f"Within 1 LSB of its simulation: {join(near)}."))
    for name, row in known.items():
        tried = curves(row)
        if tried.get("said"):
            said.append(("good" if tried["worst"] <= 1 else "warn", f"{title(name)}, {tried['said']}."))
        parting = row.get("first_parting") or {}
        if parting.get("tie") is not None:
            mark = "good" if parting["tie"] < FLOAT_NOISE else "warn"
            said.append((mark, f"{title(name)} parts first at {parting['layer']}: {tied(parting['tie'])}."))
    return said


def far(sentences: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What `sentences` say of a program that is far from its network, beside how exactly runtimes compute it; or nothing."""
    if not sentences:
        return ""
    exact = rows and all(row["max_lsb"] == 0 for row in rows.values())
    begin = "The runtimes compute the integers exactly, but they" if exact else "The integers"
    return f"{begin} are far from float: {'; '.join(sentences)}."


def tied(tie: float) -> str:
    """What it means that a float island's results, at most `tie` of a step from halfway between two integers, became others."""
    if tie < FLOAT_NOISE:
        return (
            f"it is a float island, and the results that became other integers lie within {tie:.1g} of a step from halfway "
            "between two: float's own rounding decides which, and both are right"
        )
    return (
        f"it is a float island, and results up to {tie:.1g} of a step from halfway between two integers became the other: the "
        "runtime's float kernels differ from torch's by that much"
    )


@dataclass(slots=True)
class Placed:
    """Operators of an artefact that a runtime treats alike, and what they take together in a measured run.

    inserted: they are no layers of the network."""

    kind: str
    status: str
    reason: str
    count: int = 0
    layers: list[str] = field(default_factory=list)
    ms: float | None = None
    inserted: bool = False


def grouped(rows: Iterable[Mapping[str, Any]], latency: Iterable[Mapping[str, Any]] = ()) -> list[Placed]:
    """Coverage rows joined by kind, status and reason, with the time of matching latency rows: float islands first, what a
    converter inserted last.

    A latency row belongs to the coverage row of its name and layers, else of its name, else to the first of the same layers;
    each is used once.
    """
    rows, times = list(rows), list(latency)
    spent: dict[int, float] = {}
    names = {row["name"]: i for i, row in reversed(list(enumerate(rows)))}
    layers = {tuple(row["layers"]): i for i, row in reversed(list(enumerate(rows))) if row["layers"]}
    both = {(row["name"], tuple(row["layers"])): i for i, row in reversed(list(enumerate(rows)))}
    for time in times:
        keys = tuple(time["layers"])
        index = both.get((time["name"], keys), names.get(time["name"], layers.get(keys)))
        if index is not None:
            spent[index] = spent.get(index, 0.0) + time["ms"]
    groups: dict[tuple[str, str, str, bool], Placed] = {}
    for i, row in enumerate(rows):
        inserted = row.get("inserted", False) or not row["layers"]
        key = (row["kind"], row["status"], row["reason"], inserted)
        group = groups.setdefault(key, Placed(*key[:3], inserted=inserted))
        group.count += 1
        group.layers.extend(layer for layer in row["layers"] if layer not in group.layers)
        if i in spent:
            group.ms = (group.ms or 0.0) + spent[i]
    return sorted(groups.values(), key=lambda g: (g.inserted, ORDER[g.status], -(g.ms or 0), -g.count))


def parted(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """A latency report's rows: what an operator takes, slowest first, and what none does, in the report's order."""
    rows = list(rows)
    others = [row for row in rows if row["kind"] in ("overhead", "unattributed")]
    return sorted((row for row in rows if row not in others), key=lambda row: -row["ms"]), others


def scaled(report: Mapping[str, Any]) -> str:
    """Words for rows that were scaled down, because tracing takes time itself; empty where they were not."""
    return f"; rows × {report['row_scale']:.2f}, as traced runs took longer" if report["row_scale"] < 0.995 else ""


UNSTEADY = 1.5  # p90 over p10 of whole runs from which on something else is named as running too


def unsteady(found: Mapping[str, Any] | None) -> list[str]:
    """A sentence on the artefacts of a profile whose runs differ much: what was measured is partly the machine's load."""
    said = []
    for name, row in (found or {}).get("backends", {}).items():
        for report, what in ((row, "int8"), (row.get("float"), "float")):
            total = (report or {}).get("total_ms")
            if total and total["p10"] > 0 and total["p90"] / total["p10"] >= UNSTEADY:
                said.append(f"{title(name)} {what} took {number(total['p10'])} to {number(total['p90'])} ms")
    busy = "Something else kept this device busy, so measure again when it is quiet"
    return [f"{busy}: {join(said)}."] if said else []


def compared(total: Mapping[str, Any]) -> str:
    """The verdict on two profiles in a sentence: `B is 1.32× as fast as A (1.28× to 1.35×).`"""
    times = f"{number(total['a_ms'])} ms and {number(total['b_ms'])} ms"
    if total["verdict"] == "too few runs":
        return f"{times}: too few runs to say which is faster."
    if total["verdict"] == "no difference seen":
        between = "" if total["low"] is None else f"; B takes {total['low']:.2f} to {total['high']:.2f} times A's time"
        return f"No difference seen: {times}{between}."
    low, high = sorted(
        (1 / total["low"], 1 / total["high"]) if total["verdict"] == "faster" else (total["low"], total["high"])
    )
    gain = 1 / total["ratio"] if total["verdict"] == "faster" else total["ratio"]
    return f"B is {total['verdict']}: {gain:.2f}× ({low:.2f}× to {high:.2f}×), {times}."


def differing(pair: Mapping[str, Any]) -> list[str]:
    """Sentences on what else differs between the two sides of a comparison: network, device, threads, versions."""
    a, b = pair["a"], pair["b"]
    said = [] if pair["same_network"] else [f"These are two networks: {a['model']} in A, {b['model']} in B."]
    said += [
        f"{what} differ: {a[key]} in A, {b[key]} in B."
        for key, what in (("device", "The devices"), ("threads", "The threads"))
        if a[key] != b[key]
    ]
    other = [
        f"{name} {a['versions'][name]} in A, {b['versions'][name]} in B"
        for name in a["versions"]
        if b["versions"].get(name, a["versions"][name]) != a["versions"][name]
    ]
    return said + ([f"The versions differ: {'; '.join(other)}."] if other else [])


def grouped_digits(value: int) -> str:
    """A large count in groups of three digits: `1 234 567`."""
    return f"{value:,}".replace(",", " ")


def label(row: Mapping[str, Any]) -> str:
    """A latency row's first layer and how many more it computes, or its name in the artefact; and where it is planned to run."""
    layers = row["layers"]
    said = f"{layers[0]} +{len(layers) - 1}" if len(layers) > 1 else layers[0] if layers else str(row["name"])
    return f"{said} ({row['device']})" if row.get("device") else said


def join(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def origin(data: Mapping[str, Any] | None) -> str:
    """Where calibration data came from, in words; empty where there was none."""
    if data is None:
        return ""
    if data["source"] == "calibration":
        return "calibrated on calibration() of the task"
    if data["source"] == "arrays":
        return f"calibrated on {data['path']}"
    options = ", ".join(f"{key} {value}" for key, value in data.items() if key != "source")
    return f"calibrated on made-up inputs ({data['source']}: {options})"
