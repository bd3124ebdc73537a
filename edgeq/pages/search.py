"""What a search found: as tables on the terminal, and as a page with its front, its plan and the layers that hold the time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from edgeq.pages import template, words
from edgeq.pages.columns import aligned

Found = Mapping[str, Any]
HOLDING = 8  # layers named as those that hold the time


def search_tables(found: Found) -> list[RenderableType]:
    """The winner first, then the front, then the layers that hold the time."""
    said = [Text.assemble((found["model"], "bold"), f" for {words.title(found['backend'])} on {found['device']}")]
    said += [Text(sentence) for sentence in sentences(found)]
    name = found["metric_name"] or "metric"
    table = aligned(
        "", cost_name(found), "expected", name, "SQNR dB", "bytes", *found["precisions"], "plan", left=(0, -1)
    )
    for point in found["front"]:
        counts = [str(point["layers"][p]) for p in found["precisions"]]
        table.add_row(
            "→" if point["best"] else "",
            words.number(cost(point), 4),
            words.number(point["predicted"], 4),
            _metric(point["metric"]),
            words.decibel(point["sqnr_db"]),
            f"{point['size_bytes']:,}",
            *counts,
            point["plan"],
        )
    slow = aligned("layer", "precision", "takes", "share", "hurts", "in another precision", left=(0, 1, 5))
    for row in holding(found):
        slow.add_row(row["name"], row["precision"], row["takes"], row["share"], row["hurts"], row["others"])
    head = Text("Why not faster: the layers that hold the time", style="bold")
    parts: list[RenderableType] = [*said, Text(), table]
    return [*parts, Text(), head, slow] if slow.row_count else parts


def write_search(found: Found, path: Path) -> Path:
    """Write the page to `path`, whole or not at all; returns `path`.

    Raises:
        EdgeqError: jinja2 is not installed.
    """
    contents = {
        "found": found,
        "sentences": sentences(found),
        "holding": holding(found),
        "cost_name": cost_name(found),
        "points": template.embedded(
            [
                {
                    "cost": cost(point),
                    "metric": point["metric"],
                    "sqnr": point["sqnr_db"],
                    "bytes": point["size_bytes"],
                    "best": point["best"],
                    "plan": point["plan"],
                }
                for point in found["front"]
            ]
        ),
        "uniform": template.embedded(
            {"int8": found["int8_ms"], "float": found["float_ms"], "metric": found["metric_name"] or "SQNR dB"}
        ),
    }
    return template.write("search.html", contents, path)


def sentences(found: Found) -> list[str]:
    """What was found, in words."""
    name, told = found["metric_name"], []
    if found["measured_ms"] is not None:
        floating = f", float {words.number(found['float_ms'], 4)}" if found["float_ms"] is not None else ""
        int8 = f", int8 everywhere {words.number(found['int8_ms'], 4)}" if found["int8_ms"] is not None else ""
        told.append(f"{words.number(found['measured_ms'], 4)} ms as measured{int8}{floating}")
    elif found["instructions"] is not None:
        told.append(f"{found['instructions']:,} instructions, which are no time")
    if name is not None:
        beside = [
            f"{what} {_metric(found[key])}"
            for what, key in (("float", "float_metric"), ("int8 everywhere", "int8_metric"))
            if found[key] is not None
        ]
        told.append(f"{name} {_metric(found['metric'])}" + (f" ({', '.join(beside)})" if beside else ""))
    told.append(
        f"outputs {words.decibel(found['sqnr_db'])} dB from float's"
        + (f", int8 everywhere {words.decibel(found['int8_sqnr_db'])} dB" if found["int8_sqnr_db"] is not None else "")
        + f"; {found['size_bytes']:,} bytes"
    )
    error = found["prediction_error"]
    if error["median"] is not None:
        off = [words.percent(error[which]) for which in ("median", "worst")]
        said = f"plans took what was predicted to within {off[0]} (median), {off[1]} (worst)"
        repeated = found["repeatability"]
        told.append(said + (f"; one plan measured twice: {words.percent(repeated)}" if repeated is not None else ""))
    if not found["stable"]:
        told.append("the plan was still changing when the rounds were spent: --rounds gives more")
    return told


def holding(found: Found) -> list[dict[str, str]]:
    """The layers that take most of the winner's time: what they would take and hurt in another precision."""
    units = [u for u in found["units"] if u["cost"].get(u["precision"])]
    total = sum(u["cost"][u["precision"]] for u in units)
    rows = []
    for unit in sorted(units, key=lambda u: -u["cost"][u["precision"]])[:HOLDING]:
        now = unit["cost"][unit["precision"]]
        others = [
            f"{name}: {words.number(took)} {unit_of(found)}, hurts {_share(unit['harm'].get(name), found)}"
            for name, took in unit["cost"].items()
            if name != unit["precision"] and took is not None
        ]
        rows.append(
            {
                "name": unit["name"],
                "precision": unit["precision"],
                "takes": f"{words.number(now)} {unit_of(found)}",
                "share": words.percent(now / total),
                "hurts": _share(unit["harm"].get(unit["precision"]), found),
                "others": "; ".join(others),
            }
        )
    return rows


def cost(point: Found) -> float | None:
    """Milliseconds of a point, else its instructions."""
    value = point["latency_ms"] if point["instructions"] is None else point["instructions"]
    return None if value is None else float(value)


def cost_name(found: Found) -> str:
    """What `cost` is, as the head of a column."""
    return "ms" if found["instructions"] is None else "instructions"


def unit_of(found: Found) -> str:
    """The unit behind a number."""
    return "ms" if found["instructions"] is None else "instructions"


def _metric(value: float | None) -> str:
    """A metric; four digits of one that is near 0."""
    return words.number(value, 4) if value is not None and 0 < abs(value) < 0.01 else words.plain(value)


def _share(harm: float | None, found: Found) -> str:
    """A layer's part of the error that int8 everywhere makes."""
    if harm is None or found["int8_sqnr_db"] is None:
        return words.NOTHING
    return words.percent(harm / 10 ** (-found["int8_sqnr_db"] / 10))


def explained_tables(found: Found) -> list[RenderableType]:
    """explain: for each runtime what holds its time, then what makes the error; the largest gain first."""
    parts: list[RenderableType] = []
    for name, row in found["backends"].items():
        speed = f", {words.number(row['speedup'])}× the speed of float" if row["speedup"] else ""
        lsb = f", {words.plain(row['max_lsb'])} LSB from its simulation" if row["max_lsb"] is not None else ""
        parts.append(Text.assemble((words.title(name), "bold"), f": {words.number(row['int8_ms'])} ms{speed}{lsb}"))
        table = aligned(
            "cause", "layers", "ms", "float ms", "gains at most", "why", "what to change", left=(0, 1, 5, 6)
        )
        for cause in row["slow"][:HOLDING]:
            table.add_row(
                cause["what"],
                _few(cause["layers"]),
                words.number(cause["ms"]),
                words.number(cause["float_ms"]),
                f"{words.number(cause['gain_ms'])} ms",
                cause["why"],
                cause["change"],
            )
        parts.append(
            table if table.row_count else Text("nothing that could be changed holds a share of its time", style="dim")
        )
    wrong = aligned("layer", "SQNR dB", "falls by dB", "outputs gain dB", "what to change", left=(0, 4))
    for row in found["wrong"]:
        gain = words.NOTHING if row["gain_db"] is None else f"{row['gain_db']:.2f}".replace("-", "−")
        wrong.add_row(row["layer"], words.decibel(row["sqnr_db"]), words.decibel(row["fall_db"]), gain, row["change"])
    if wrong.row_count:
        parts += [Text("where the error rises most, and what float there would give back", style="bold"), wrong]
    return [*parts, Text(found["note"], style="dim")] if found["note"] else parts


def _few(keys: list[str]) -> str:
    """The first layers of several."""
    return ", ".join(keys[:2]) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")
