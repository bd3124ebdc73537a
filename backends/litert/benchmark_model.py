"""LiteRT's own `benchmark_model` on a phone: its command line, and what it prints, read back.

Android has no Python package of LiteRT; this program is what TensorFlow and LiteRT give out for it. Format: `count=...` lines
by tensorflow/core/util/stats_calculator.h (Stat::OutputToStream; newer ones add percentiles), the table of operators by
stats_calculator.cc (StatsCalculator::HeaderString and ColumnString), announced by
tensorflow/lite/tools/benchmark/profiling_listener.cc, or behind LiteRT's own summary by
litert/tools/benchmark_litert_model.h. Options of both programs are given; that each passes over the other's was not tried.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeq.spec import EdgeqError

PROGRAM: Final = "benchmark_model"
ON_DEVICE: Final = f"/data/local/tmp/{PROGRAM}"
VARIABLE: Final = "EDGEQ_BENCHMARK_MODEL"
_STATS: Final = re.compile(r"(?:^|\s)count=(\d+) (.*)$")
_OPERATORS: Final = "Operator-wise Profiling Info for Regular Benchmark Runs"
_SUMMARY: Final = "BENCHMARK RESULTS"


@dataclass(frozen=True, slots=True)
class Node:
    """A row of the table: its type (in XNNPACK's words inside the delegate), mean milliseconds a run, and its name."""

    kind: str
    ms: float
    name: str

    @property
    def delegated(self) -> bool:
        """Whether it lies inside a delegate."""
        return self.name.startswith("Delegate/")

    def operator(self, names: Sequence[str]) -> int | None:
        """Which operator of the file it is, where it is one of the interpreter's own kernels.

        names: of each operator's first output. Newer programs print the operator's number behind its outputs.
        """
        found = re.fullmatch(r"\[(.*)\](?::(\d+))?", self.name)
        if found is None or self.delegated:
            return None
        if found[2] is not None:
            return int(found[2]) if int(found[2]) < len(names) else None
        first = found[1].partition(", ")[0]
        return names.index(first) if first in names else None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One call of the program: how many timed runs, their mean and (newer programs) median in milliseconds, and its table."""

    runs: int
    mean_ms: float
    median_ms: float | None
    nodes: tuple[Node, ...]


def command(program: str, graph: str, *, threads: int, warmup: int, runs: int, profiling: bool) -> list[str]:
    """The command line; exactly `runs` runs after `warmup`, by XNNPACK's kernels."""
    flags = {
        "graph": graph,
        "num_threads": threads,
        "warmup_runs": max(1, warmup),
        "num_runs": runs,
        "warmup_min_secs": 0,
        "min_secs": 0,
        "use_xnnpack": "true",
        "use_cpu": "true",
        **({"enable_op_profiling": "true", "use_profiler": "true"} if profiling else {}),
    }
    return [program, *(f"--{name}={value}" for name, value in flags.items())]


def parse(text: str) -> Benchmark:
    """What the program printed, on stdout and stderr together.

    Raises:
        EdgeqError: it is not the output of a whole, successful call, or of a layout not known here.
    """
    lines = [line.rstrip("\r").removeprefix("INFO: ") for line in text.splitlines()]
    starts = [i for i, line in enumerate(lines) if line.startswith("Running benchmark for at least")]
    if len(starts) < 2:
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
        raise EdgeqError(f"{PROGRAM} did not get to its timed runs; the last that it said: {last[:200]}")
    runs, values = _stats(lines[starts[-1] :])
    median = values.get("median")
    return Benchmark(runs, values["avg"] / 1e3, median / 1e3 if median is not None else None, _nodes(lines))


def _stats(lines: Sequence[str]) -> tuple[int, dict[str, float]]:
    """The first `count=` line: how many runs, and microseconds by name."""
    for line in lines:
        found = _STATS.search(line)
        if found:
            values = {}
            for word in found[2].split():
                name, _, number = word.partition("=")
                try:
                    values[name] = float(number)
                except ValueError:
                    break
            if "avg" not in values:
                raise EdgeqError(
                    f"{PROGRAM} was cut off in the middle of its result: {line.strip()[:200]}; measure again"
                )
            return int(found[1]), values
    raise EdgeqError(f"{PROGRAM} ended before it gave a result; measure again")


def _nodes(lines: Sequence[str]) -> tuple[Node, ...]:
    """The table of operators in the order in which they run; empty where there is none."""
    begin = next((i for i, line in enumerate(lines) if _OPERATORS in line), None)
    if begin is None:
        begin = next((i for i, line in enumerate(lines) if _SUMMARY in line), None)
    head = next((i for i in range(begin, len(lines)) if "[node type]" in lines[i]), None) if begin is not None else None
    if head is None:
        return ()
    titles = [title.strip() for title in lines[head].strip().split("\t")]
    try:
        at = [titles.index(title) for title in ("[node type]", "[avg ms]", "[times called]", "[Name]")]
    except ValueError as error:
        raise EdgeqError(
            f"{PROGRAM} prints a table of operators that is not known here: {', '.join(titles)}"
        ) from error
    found: list[Node] = []
    for line in lines[head + 1 :]:
        if not line.strip():
            return tuple(found)
        cells = [cell.strip() for cell in line.strip().split("\t")]
        try:
            kind, ms, called, name = (cells[i] for i in at)
            if float(called) > 0:  # a step of preparation is called 0 times a run
                found.append(Node(kind, float(ms), name))
        except (ValueError, IndexError) as error:
            raise EdgeqError(
                f"{PROGRAM}'s table of operators was cut off: {line.strip()[:200]}; measure again"
            ) from error
    raise EdgeqError(f"{PROGRAM}'s table of operators was cut off; measure again")
