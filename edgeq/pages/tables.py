"""The terminal's tables: plain data of the verbs in, rich renderables out. Readable at 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgeq import backends
from edgeq.pages.columns import aligned
from edgeq.pages.words import (
    NOTHING,
    ap,
    compared,
    curves,
    decibel,
    differing,
    duration,
    far,
    grouped,
    grouped_digits,
    join,
    label,
    layered,
    medians,
    number,
    origin,
    parted,
    percent,
    plain,
    points,
    scaled,
    share,
    signed,
    sized,
    slower,
    speed,
    tied,
    title,
    unsteady,
)

Found = Mapping[str, Any]
STYLE = {"integer": "green", "table": "green", "eligible": "cyan", "float island": "yellow"}
VERDICTS = {"faster": "green", "slower": "bold yellow", "no difference seen": "dim", "too few runs": "dim"}
HALF = 0.5  # LSB: where an integer is another one
SHOWN = 10  # slowest operators listed; the page has all


def demo_table(found: Found) -> list[RenderableType]:
    """The demo: one row a runtime, warnings before it, accuracy and the page behind it."""
    rows = found["backends"]
    latency = medians(rows)
    table = aligned("runtime", "LSB", "equal", "to QDQ", "int8 ms", "float ms", "speedup", "layers")
    for name, row in rows.items():
        int8, floating, gain = speed(latency["backends"][name])
        table.add_row(
            title(name),
            _lsb(row["max_lsb"]),
            share(row["exact_share"]),
            plain(row["qdq_lsb"]),
            number(int8),
            number(floating),
            _gain(gain),
            "/".join(plain(row.get(k)) for k in ("integer_ops", "table_ops", "eligible_ops", "float_ops")),
        )
    accuracy = _accuracy(found["float_metric"], found["qdq_metric"], {n: r["metric"] for n, r in rows.items()})
    legend = (
        "LSB, equal: the artefact against its runtime's own simulation; to QDQ: LSB from\n"
        "the float QDQ program; layers: integer/table/eligible/float"
    )
    return [
        *_warnings(latency),
        _head(found["network"], ""),
        table,
        Text(legend, style="dim"),
        *([accuracy] if accuracy else []),
        Text.assemble("page  ", (str(found["report"]), "bold")),
    ]


def lidar_table(found: Found) -> list[RenderableType]:
    """The lidar demo: what int8 loses of the vehicles' AP, one row a runtime, and where page and bundles lie."""
    rows, average = found["backends"], found["ap"]
    latency = medians(rows)
    lost = {k: signed(points(average[k], average["float"])) for k in ("minmax", "lidar_ptq")}
    table = aligned("runtime", "LSB", "equal", "AP", "int8 ms", "float ms", "speedup", "layers")
    for name, row in rows.items():
        int8, floating, gain = speed(latency["backends"][name])
        table.add_row(
            title(name),
            _lsb(row["max_lsb"]),
            share(row["exact_share"]),
            ap((row["metric"] or {}).get("vehicle_ap")),
            number(int8),
            number(floating),
            _gain(gain),
            "/".join(plain(row.get(k)) for k in ("integer_ops", "table_ops", "eligible_ops", "float_ops")),
        )
    legend = (
        "LSB, equal: the artefact against its runtime's own simulation; AP: vehicles, in\n"
        "the artefact's own boxes; layers: integer/table/eligible/float"
    )
    frames = found["frames"]
    bundles = [(title(name), str(row["bundle"])) for name, row in rows.items() if row.get("bundle")]
    width = max((len(name) for name, _ in bundles), default=0)
    return [
        *_warnings(latency),
        _head(found["network"], f"{frames['calibration']} frames to calibrate, {frames['evaluation']} to measure"),
        Text.assemble(
            f"vehicle AP  float {ap(average['float'])} → minmax {ap(average['minmax'])} ({lost['minmax']}) → lidar-ptq ",
            (ap(average["lidar_ptq"]), "bold"),
            f" ({lost['lidar_ptq']})",
        ),
        Text(f"agreement   {ap(found['agreement'])}: AP of the int8 boxes with float's as the truth"),
        table,
        Text(legend, style="dim"),
        Text.assemble("page    ", (str(found["report"]), "bold")),
        *(Text.assemble("bundle  ", f"{name:<{width}}  ", (path, "bold")) for name, path in bundles),
    ]


def bundle_table(found: Found) -> list[RenderableType]:
    """Where the bundles lie, and why one is missing."""
    made = [(title(name), str(row["bundle"])) for name, row in _ran(found).items()]
    return [*(Text.assemble(f"{name}  ", (path, "bold")) for name, path in made), *_failed(found)]


def quantized_table(found: Found) -> list[RenderableType]:
    """What quantize made: counts, and the float islands grouped by reason."""
    folder = found["folder"]
    parts: list[RenderableType] = [_head(found["model"], f"target {found['target']}, recipe {found['recipe']}")]
    counts, macs = found["operators"], found["macs"]
    work = macs["integer"] + macs["float"]
    part = f" ({percent(macs['integer'] / work)} of multiply-accumulates)" if work else ""
    parts.append(
        Text.assemble(
            (f"{counts['integer']}", "bold"),
            f" of {counts['integer'] + counts['float']} layers compute in integers{part}, ",
            (f"{counts['float']}", "bold"),
            f" in float; {found['tensors']} tensors have a scale",
        )
    )
    if found["data"]:
        parts.append(Text(origin(found["data"])))
    if found["islands"]:
        parts.append(_islands(found["islands"], found["island_operators"]))
    if folder:
        parts.append(Text.assemble("next  ", (f"edgeq export {folder} --to {next(iter(backends.RUNTIMES))}", "bold")))
    return parts


def coverage_tables(found: Found) -> list[RenderableType]:
    """Per backend: which operators run as integers, which do not and why, equal rows joined."""
    parts: list[RenderableType] = []
    failed = _failed(found)
    for name, row in _ran(found).items():
        parts.append(_head(title(name), layered(row)))
        table = aligned("operator", "count", "runs as", "why", left=(0, 2, 3))
        for group in grouped(row["rows"]):
            status = Text("inserted", style="dim") if group.inserted else Text(group.status, style=STYLE[group.status])
            table.add_row(group.kind, f"×{group.count}", status, escape(_why(group.reason, group.status, group.layers)))
        parts.append(table)
        parts.extend(Text(f"note: {note}", style="dim") for note in row["notes"])
        parts.append(Text.assemble("artefact  ", (str(row["artifact"]), "bold"), f"  {sized(row)}"))
        if "bundle" in row:
            parts.append(Text.assemble("bundle    ", (str(row["bundle"]), "bold")))
        parts.append(Text())
    return [*parts, *failed] if failed else parts[:-1]


def parity_table(found: Found) -> list[RenderableType]:
    """verify: every kernel set and output of every backend, then accuracy."""
    failed, found = _failed(found), {**found, "backends": _ran(found)}
    several = any(len(k["outputs"]) > 1 for row in found["backends"].values() for k in row["kernels"].values())
    columns = ["runtime", "kernels", *(["output"] if several else []), "max LSB", "equal", "to QDQ", "SQNR dB"]
    table = aligned(*columns, left=range(len(columns) - 4))
    partings = []
    for name, row in found["backends"].items():
        first = True
        for kernels, report in row["kernels"].items():
            for output in report["outputs"]:
                mark = "*" if output["equivalent"] else ""
                table.add_row(
                    title(name) if first else "",
                    kernels,
                    *([escape(output["name"])] if several else []),
                    Text.assemble(_lsb(output["max_lsb"]), mark),
                    share(output["exact_share"]),
                    plain(output["qdq_lsb"]) + mark,
                    decibel(output["sqnr_db"]),
                )
                first = False
        partings.extend(_parting(name, row))
    batches = f"{found['batches']} calibration batch{'es' if found['batches'] != 1 else ''}"
    inputs = {"golden": "the synthetic golden input", "calibration": batches}
    where = "" if found["device"] == "host" else f", run by {found['device']}"
    parts: list[RenderableType] = [
        _head(found["model"], f"on {inputs.get(found['inputs'], found['inputs'])}{where}"),
        table,
    ]
    if any(o["equivalent"] for r in found["backends"].values() for k in r["kernels"].values() for o in k["outputs"]):
        parts.append(Text("* the output is computed in float: LSB is 1/255 of its range", style="dim"))
    for name, row in found["backends"].items():
        if said := curves(row).get("said"):
            parts.append(Text(f"{title(name)}, {said}", style="dim"))
    parts.append(Text("max LSB, equal: against the runtime's own simulation; SQNR: against float", style="dim"))
    parts.extend(partings)
    unexplained = [row["max_lsb"] for row in found["backends"].values() if "first_parting" not in row]
    if any(lsb is None or lsb >= HALF for lsb in unexplained):
        parts.append(Text.assemble(("edgeq verify --layers", "bold"), " names the layer that parts first"))
    if sentence := far(found.get("far", ()), found["backends"]):
        parts.append(Text.assemble(("! ", "bold red"), sentence))
    parts.extend(Text(sentence, style="dim") for sentence in _skipped(found))
    parts.extend(failed)
    parts.extend(
        Text.assemble(("! ", "bold red"), (title(name), "bold"), f": no accuracy: {row['metric_error']}")
        for name, row in found["backends"].items()
        if "metric_error" in row
    )
    accuracy = _accuracy(
        found["float_metric"], found["qdq_metric"], {n: r["metric"] for n, r in found["backends"].items()}
    )
    return [*parts, accuracy] if accuracy else parts


def latency_tables(found: Found) -> list[RenderableType]:
    """profile: int8 beside float, then each runtime's slowest operators. A slower backend is said first.

    What was counted on an emulated core has a table without times.
    """
    failed = _failed(found)
    if failed:
        return [*latency_tables({**found, "backends": _ran(found)}), *failed]
    counted = {name: row for name, row in found["backends"].items() if "instructions" in row}
    if counted:
        timed = {name: row for name, row in found["backends"].items() if name not in counted}
        first = instruction_table({**found, "backends": counted})
        return [*first, Text(), *latency_tables({**found, "backends": timed})] if timed else first
    table = aligned("runtime", "int8 ms", "p10–p90", "float ms", "p10–p90", "speedup")
    untimed, parts = [], []
    for name, row in found["backends"].items():
        int8, floating, gain = speed(row)
        spreads = _spread(row), _spread(row["float"])
        table.add_row(title(name), number(int8), spreads[0], number(floating), spreads[1], _gain(gain))
        if row["total_ms"] is None:
            untimed.append(title(name))
        elif row["rows"]:
            parts.extend(_operators(name, row))
    measured = next((row for row in found["backends"].values() if row["total_ms"]), None)
    how = ""
    if measured:
        runs = measured["total_ms"]["runs"]
        how = f"{runs} runs after {measured['warmup']}, {_threads(measured)}, {measured['device']}"
    said = [Text(f"{join(untimed)} cannot be timed on this host", style="dim")] if untimed else []
    said += [Text(sentence, style="dim") for sentence in (*unsteady(found), *found.get("notes", ()), *_skipped(found))]
    numbers = _numbers(found)
    said += [Text(f"kept as {numbers}; edgeq profile --compare takes these numbers", style="dim")] if numbers else []
    return [*_warnings(found), _head(found["model"], how), table, *said, *parts]


def _ran(found: Found) -> dict[str, Found]:
    """The rows of the runtimes that did not fail."""
    return {name: row for name, row in found["backends"].items() if "error" not in row}


def _failed(found: Found) -> list[RenderableType]:
    """A sentence for each runtime that failed."""
    return [
        Text.assemble(("! ", "bold red"), (title(name), "bold"), f": {row['error']}")
        for name, row in found["backends"].items()
        if "error" in row
    ]


def _skipped(found: Found) -> list[str]:
    """A sentence for each reason why artefacts were left out, because they do not run on this device."""
    return [f"left out: {why}" for why in dict.fromkeys(found.get("skipped", {}).values())]


def _numbers(found: Found) -> str:
    """`measurements 3 (LiteRT), 4 (its float twin)`."""
    said = []
    for name, row in found["backends"].items():
        for report, what in ((row, title(name)), (row["float"], "its float twin")):
            if (report or {}).get("measurement") is not None:
                said.append(f"{report['measurement']} ({what})")
    return f"measurement{'s' if len(said) > 1 else ''} {', '.join(said)}" if said else ""


def comparison_tables(found: Found) -> list[RenderableType]:
    """profile --compare: the verdict first, then both totals, then every layer that both have."""
    parts: list[RenderableType] = [
        Text.assemble(("A  ", "bold"), found["a"]),
        Text.assemble(("B  ", "bold"), found["b"]),
    ]
    for pair in found["pairs"]:
        total = pair["total"]
        who = (pair["a"]["backend"], pair["b"]["backend"])
        name = title(who[0]) if who[0] == who[1] else f"{title(who[0])} (A) and {title(who[1])} (B)"
        parts += [Text(), _head(name, "")]
        parts += [Text(sentence, style="bold" if i == 0 and not pair["same_network"] else "dim")
                  for i, sentence in enumerate(differing(pair))]  # fmt: skip
        parts += [Text(compared(total), style=VERDICTS[total["verdict"]])]
        table = aligned("A ms", "B ms", "B / A", "interval", "B is", "layer", left=(4, 5))
        for row in sorted(pair["layers"], key=lambda row: -max(row["a_ms"], row["b_ms"])):
            table.add_row(*_compared_row(row), escape(label(row)))
        table.add_section()
        table.add_row(*_compared_row(total), "whole inference")
        parts.append(table)
    note = "interval: 95 % of the bootstrapped ratio of medians, 99.9 % for a layer"
    return [*parts, Text(note, style="dim")]


def diff_tables(found: Found) -> list[RenderableType]:
    """diff: what is worse first, then what changed in plan and numbers, then a row for each figure that is another."""
    worse = [Text(f"! {sentence}", style="bold yellow") for sentence in found["regressions"]]
    parts: list[RenderableType] = [*worse] or [Text("no regression", style="green")]
    pairs = {key: found[key] for key in ("target", "recipe")}
    parts.extend(Text(f"{k}: {v['old']} → {v['new']}") for k, v in pairs.items() if v["old"] != v["new"])
    plan = found["plan"]
    parts.append(Text(f"{len(plan)} layers planned otherwise; {len(found['numbers'])} tensors with other numbers"))
    if plan:
        table = aligned("layer", "old", "new", left=(0, 1, 2))
        for layer, values in plan.items():
            table.add_row(escape(layer), *(values[side] or NOTHING for side in ("old", "new")))
        parts.append(table)
    table = aligned("runtime", "", "old", "new", left=(0, 1))
    for which, metrics in found["metric"].items():
        for metric, values in metrics.items():
            table.add_row(which.removesuffix("_metric"), escape(metric), plain(values["old"]), plain(values["new"]))
    for name, row in found["backends"].items():
        figures = {k: v for k, v in row.items() if k not in ("exported", "verified", "metric", "latency")}
        told = row["latency"]
        figures |= row["metric"] | ({"median ms": {"old": told["a_ms"], "new": told["b_ms"]}} if told else {})
        for figure, values in figures.items():
            if values["old"] != values["new"]:
                table.add_row(title(name), escape(figure), plain(values["old"]), plain(values["new"]))
        if told and told["low"] is not None:
            table.add_row(title(name), "new / old, 95 %", "", f"{told['low']:.2f}–{told['high']:.2f}")
    return [*parts, table] if table.row_count else parts


def _compared_row(row: Found) -> list[RenderableType]:
    between = NOTHING if row["low"] is None else f"{row['low']:.2f}–{row['high']:.2f}"
    ratio = NOTHING if row["ratio"] is None else f"{row['ratio']:.2f}"
    verdict = str(row["verdict"])
    said = {"no difference seen": "", "too few runs": NOTHING}.get(verdict, verdict)
    return [duration(row["a_ms"]), duration(row["b_ms"]), ratio, between, Text(said, style=VERDICTS[verdict])]


def instruction_table(found: Found) -> list[RenderableType]:
    """Instructions of one inference on an emulated core, one row a runtime; there is no time to show."""
    table = aligned("runtime", "int8", "float", "float / int8", "device", left=(0, 4))
    for name, row in found["backends"].items():
        floating = row.get("float")
        table.add_row(
            title(name),
            grouped_digits(row["instructions"]),
            grouped_digits(floating["instructions"]) if floating else NOTHING,
            f"{row['fewer']:.2f}" if floating else NOTHING,
            escape(row["device"]),
        )
    note = "counted on an emulated core; from instructions no time follows"
    said = [Text(sentence, style="dim") for sentence in (*found.get("notes", ()), *_skipped(found))]
    return [_head(found["model"], "instructions of one inference"), table, Text(note, style="dim"), *said]


def _operators(name: str, report: Found) -> list[RenderableType]:
    rows, others = parted(report["rows"])
    table = aligned("ms", "share", "operator", left=(2,))
    total = report["total_ms"]["median"]
    for row in rows[:SHOWN]:
        table.add_row(duration(row["ms"]), percent(row["ms"] / total), escape(label(row)))
    if len(rows) > SHOWN:
        rest = sum(row["ms"] for row in rows[SHOWN:])
        table.add_row(number(rest), percent(rest / total), Text(f"{len(rows) - SHOWN} others", style="dim"))
    for row in others:
        table.add_row(duration(row["ms"]), percent(row["ms"] / total), Text(row["name"], style="dim"))
    table.add_section()
    table.add_row(number(total), percent(1.0), Text("whole inference, operators not traced", style="dim"))
    return [_head(title(name), f"slowest operators, by {report['method']}{scaled(report)}"), table]


def _accuracy(floating: Found | None, qdq: Found | None, backends: Mapping[str, Found | None]) -> RenderableType | None:
    if not floating:
        return None
    table = aligned("accuracy", *(escape(name) for name in floating))
    for name, values in {"float": floating, "QDQ program": qdq, **{title(n): m for n, m in backends.items()}}.items():
        table.add_row(name, *(plain((values or {}).get(metric)) for metric in floating))
    return table


def _islands(islands: Mapping[str, str], operators: Mapping[str, str]) -> Table:
    reasons: dict[tuple[str, str], list[str]] = {}
    for layer, reason in islands.items():
        reasons.setdefault((operators.get(layer, "operator"), reason), []).append(layer)
    table = aligned("in float", "count", "why", left=(0, 2))
    for (kind, reason), layers in sorted(reasons.items(), key=lambda item: -len(item[1])):
        table.add_row(kind, f"×{len(layers)}", escape(_why(reason, "float island", layers)))
    return table


def _why(reason: str, status: str, layers: list[str]) -> str:
    """The reason; of a float island also which layers, as far as they fit."""
    if status != "float island" or not layers:
        return reason
    more = f" and {len(layers) - 2} more" if len(layers) > 2 else ""
    where = f"{', '.join(layers[:2])}{more}"
    return f"{reason} ({where})" if reason else where


def _parting(name: str, row: Found) -> list[RenderableType]:
    if "first_parting" not in row:
        return []
    found = row["first_parting"]
    if found is None:
        outputs = [o for k in row["kernels"].values() for o in k["outputs"] if o["max_lsb"] != 0]
        if all(o["equivalent"] for o in outputs):
            return [Text(f"{title(name)}: every integer agrees; what is computed in float behind them differs")]
        return [Text(f"{title(name)}: every prefix agrees; the difference arises only in the whole network")]
    text = f"{title(name)}: parts first at {found['layer']}, by {plain(found['max_lsb'])} LSB"
    rows: list[RenderableType] = [Text(f"{text} ({share(found['exact_share'])} equal)")]
    if found.get("tie") is not None:
        rows.append(Text(tied(found["tie"])))
    return rows


def _warnings(profile: Found) -> list[RenderableType]:
    return [Text(f"! {sentence}", style="bold yellow") for sentence in slower(profile)]


def _lsb(value: float | None) -> Text:
    return Text(plain(value), style="" if value is None else "green" if value == 0 else "yellow" if value > 1 else "")


def _gain(value: float | None) -> Text:
    return Text(NOTHING) if value is None else Text(f"{value:.2f}×", style="bold yellow" if value < 1 else "green")


def _spread(report: Found | None) -> str:
    total = (report or {}).get("total_ms")
    return f"{number(total['p10'])}–{number(total['p90'])}" if total else NOTHING


def _threads(report: Found) -> str:
    return f"{report['threads']} thread{'s' if report['threads'] != 1 else ''}"


def _head(name: str, detail: str) -> Text:
    return Text.assemble((name, "bold"), (f"  {detail}" if detail else "", "dim"))
