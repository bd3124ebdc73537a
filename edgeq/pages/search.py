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
            words.plain(point["metric"]),
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
            f"{what} {words.plain(found[key])}"
            for what, key in (("float", "float_metric"), ("int8 everywhere", "int8_metric"))
            if found[key] is not None
        ]
        told.append(f"{name} {words.plain(found['metric'])}" + (f" ({', '.join(beside)})" if beside else ""))
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


def _share(harm: float | None, found: Found) -> str:
    """A layer's part of the error that int8 everywhere makes."""
    if harm is None or found["int8_sqnr_db"] is None:
        return words.NOTHING
    return words.percent(harm / 10 ** (-found["int8_sqnr_db"] / 10))
