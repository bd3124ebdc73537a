"""How the terminal and the page say a number, a verdict and a coverage table, so that both say the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

TITLES = {"litert": "LiteRT", "executorch": "ExecuTorch", "coreml": "Core ML", "tvm": "TVM"}
NOTHING = "–"
ORDER = {"float island": 0, "eligible": 1, "integer": 2}  # what a reader must see first


def title(backend: str) -> str:
    """A runtime's name as its makers write it."""
    return TITLES.get(backend, backend)


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


def decibel(value: float | None) -> str:
    """dB with one digit; ∞ where nothing differs (null in JSON too)."""
    return "∞" if value is None or math.isinf(value) else f"{value:.1f}".replace("-", "−")


def size(count: int) -> str:
    """Bytes in kB or MB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def speed(row: Mapping[str, Any]) -> tuple[float | None, float | None, float | None]:
    """Median milliseconds of int8 and of float, and float over int8, out of one backend's profile."""
    int8, floating = ((row.get(k) or {}).get("median_ms") for k in ("int8", "float"))
    return int8, floating, row.get("speedup")


def slower(found: Mapping[str, Any] | None) -> list[str]:
    """One sentence for each backend of a profile whose int8 artefact is slower than its float twin."""
    sentences = []
    for name, row in (found or {}).get("backends", {}).items():
        int8, floating, gain = speed(row)
        if gain is not None and gain < 1:
            sentences.append(
                f"{title(name)}: int8 is slower than float here, {number(int8)} ms against {number(floating)} ms."
            )
    return sentences


@dataclass(slots=True)
class Placed:
    """Operators of an artefact that a runtime treats alike, and what they take together in a measured run."""

    kind: str
    status: str
    reason: str
    count: int = 0
    layers: list[str] = field(default_factory=list)
    ms: float | None = None


def grouped(rows: Iterable[Mapping[str, Any]], latency: Iterable[Mapping[str, Any]] = ()) -> list[Placed]:
    """Coverage rows joined by kind, status and reason, float islands first, with the time of matching latency rows.

    A latency row belongs to the coverage row of its name, else to the first of the same layers; each is used once.
    """
    rows, times = list(rows), list(latency)
    spent: dict[int, float] = {}
    names = {row["name"]: i for i, row in reversed(list(enumerate(rows)))}
    layers = {tuple(row["layers"]): i for i, row in reversed(list(enumerate(rows))) if row["layers"]}
    for time in times:
        index = names.get(time["name"], layers.get(tuple(time["layers"])))
        if index is not None:
            spent[index] = spent.get(index, 0.0) + time["ms"]
    groups: dict[tuple[str, str, str], Placed] = {}
    for i, row in enumerate(rows):
        key = (row["kind"], row["status"], row["reason"])
        group = groups.setdefault(key, Placed(*key))
        group.count += 1
        group.layers.extend(layer for layer in row["layers"] if layer not in group.layers)
        if i in spent:
            group.ms = (group.ms or 0.0) + spent[i]
    return sorted(groups.values(), key=lambda g: (ORDER[g.status], -(g.ms or 0), -g.count))


def label(row: Mapping[str, Any]) -> str:
    """A latency row's first layer and how many more it computes, or its name in the artefact."""
    layers = row["layers"]
    return f"{layers[0]} +{len(layers) - 1}" if len(layers) > 1 else layers[0] if layers else str(row["name"])


def join(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
