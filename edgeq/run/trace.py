"""A profile in Chrome's trace format, for chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]
Step = tuple[str, str, float, dict[str, Any]]  # name, kind, milliseconds, what else is said
LANES = {"operators": 1, "whole runs": 2}  # what is drawn under each artefact, with its thread number


def chrome_trace(found: Found) -> dict[str, Any]:
    """What `profile` found as a trace: for each artefact one typical inference, and all whole runs under it.

    Rows stand one behind the other in their order of execution, each as long as it typically takes; profilers tell no gaps,
    so overhead and what is unattributed stand at the end. Times are microseconds, as the format wants them.
    """
    events: list[dict[str, Any]] = []
    process = 0
    for backend, row in found["backends"].items():
        for variant, report in (("int8", row), ("float", row["float"])):
            if report is None or report["total_ms"] is None:
                continue
            process += 1
            events += _named(process, f"{backend} {variant}, {report['device']}")
            events += _end_to_end(process, "operators", (_row(row) for row in report["rows"]))
            whole: Iterator[Step] = ((f"run {i}", "run", ms, {}) for i, ms in enumerate(report["run_ms"]))
            events += _end_to_end(process, "whole runs", whole)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"model": found["model"], **found["versions"]},
    }


def _named(process: int, name: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
    for lane, thread in LANES.items():
        yield {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": lane}}


def _row(row: Found) -> Step:
    layers: Sequence[str] = row["layers"]
    return (
        layers[0] if layers else row["name"],
        row["kind"],
        row["ms"],
        {"operator": row["name"], "layers": list(layers)},
    )


def _end_to_end(process: int, lane: str, steps: Iterator[Step]) -> Iterator[dict[str, Any]]:
    start = 0.0
    for name, kind, ms, said in steps:
        yield {
            "ph": "X", "name": name, "cat": kind, "pid": process, "tid": LANES[lane], "ts": start, "dur": ms * 1e3,
            "args": said,
        }  # fmt: skip
        start += ms * 1e3
