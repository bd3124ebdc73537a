"""How often are two profiles of one file called different, and what difference is seen? Many profiles, each in a process.

python tools/bench_verdicts.py [--profiles 200] [--runs 30] [--busy 2] [--alone | --prompt] [--json FILE] [--again FILE]

--busy starts as many processes that multiply matrices, --alone keeps other programs off this one's core by real-time priority
(Linux; needs root); --prompt gives that priority to what comes before the measuring, which has none: for a machine so busy
that 200 processes would take hours to start. --json keeps every run's time, --again reads such a file instead of measuring.
Exit status 1 where more than 5 % of pairs of identical profiles are called different.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import edgeq
from edgeq import api
from edgeq.devices import host
from edgeq.run.compare import ratio_of_medians
from edgeq.run.profile import EARLIER

SIZE = 64  # pixels of the image, a side
MOST_WRONG = 0.05
SEEN = 0.8  # of pairs in which a difference shall be found
PAIRS = 2_000  # drawn from all pairs of profiles, beside each with the next one
Pair = tuple[Sequence[float], Sequence[float], tuple[Sequence[float], Sequence[float]]]  # runs, runs, earlier medians
FORK = multiprocessing.get_context("fork")  # a process that has imported everything: a profile takes a second, not ten


def network() -> nn.Module:
    """Some tenths of a millisecond: the kind that noise hurts most."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU6(), nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU6(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def quantized(folder: Path) -> None:
    """The network as a model folder, exported to LiteRT, the float network beside it."""
    example = (torch.zeros(1, 3, SIZE, SIZE),)
    task = edgeq.Task("small", network, lambda: example, lambda: [(torch.rand(1, 3, SIZE, SIZE),) for _ in range(4)])
    model = edgeq.quantize(task, recipe="minmax", output=folder)
    edgeq.export(model, "litert")
    edgeq.export(model, "litert", float_twin=True)


def apart(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` returns, in a process of its own."""
    with FORK.Pool(1) as pool:
        return pool.apply(work, given)


def profiled(folder: Path, runs: int, alone: bool) -> dict[str, list[float]]:
    """Milliseconds of each run of one profile."""
    model = edgeq.load(folder)
    if not alone:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    row = api.profile(model, to=["litert"], runs=runs)["backends"]["litert"]
    return {"int8": row["run_ms"], "float": row["float"]["run_ms"]}


def measured(profiles: int, runs: int, alone: bool) -> dict[str, list[list[float]]]:
    """The runs of each of many profiles."""
    found: dict[str, list[list[float]]] = {"int8": [], "float": []}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["EDGEQ_HOME"] = scratch
        folder = Path(scratch) / "model"
        apart(quantized, folder)
        for done in range(profiles):
            for name, series in apart(profiled, folder, runs, alone).items():
                found[name].append(series)
            print(f"\r{done + 1} of {profiles} profiles", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def verdicts(series: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of identical profiles: how far their medians lie apart, which pairs are called different, and which slower file
    would be found.

    Pairs are each profile with the next one, which know the profiles before them, and any two that know none.
    """
    medians = [float(np.median(runs)) for runs in series]
    draw = np.random.default_rng(0)
    drawn = [tuple(draw.choice(len(series), 2, replace=False)) for _ in range(PAIRS)]
    before = [medians[max(0, i - EARLIER) : i] for i in range(len(series))]
    first = [(series[i], series[j], ((), ())) for i, j in drawn]
    following = [(series[i], series[i + 1], (before[i], before[i + 1])) for i in range(len(series) - 1)]
    middle = float(np.median(medians))
    return {
        "ms": middle,
        "middle_half": float(np.subtract(*np.percentile(medians, (75, 25)))) / middle,
        "furthest": float(np.max(np.abs(np.subtract(medians, middle)))) / middle,
        **{f"{name}_wrong": _different(found) for name, found in (("first", first), ("following", following))},
        **{f"{name}_found": _found(found) for name, found in (("first", first), ("following", following))},
    }


def _different(pairs: Sequence[Pair]) -> float:
    """Share of pairs that are called different."""
    found = [ratio_of_medians(a, b, earlier=earlier) for a, b, earlier in pairs]
    return sum(ratio.verdict in ("faster", "slower") for ratio in found) / len(found)


def _found(pairs: Sequence[Pair]) -> float:
    """How much slower a file has to be to be called so in `SEEN` of the pairs. The interval's lower end grows as the file
    slows, and is asked where it is twice as slow, as next to nothing has no interval."""
    found = [ratio_of_medians(a, [2 * ms for ms in b], earlier=earlier) for a, b, earlier in pairs]
    return float(np.quantile([2 / ratio.low - 1 for ratio in found if ratio.low], SEEN))


def _burn() -> None:
    while True:
        made = np.ones((256, 256), np.float32)
        for _ in range(50):
            made = made @ made * np.float32(1e-3)
        time.sleep(float(np.random.default_rng().uniform(0, 0.1)))


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """As many processes that work and rest by turns, for tenths of seconds."""
    burning = [FORK.Process(target=_burn, daemon=True) for _ in range(processes)]
    for process in burning:
        process.start()
    try:
        yield
    finally:
        for process in burning:
            process.terminate()


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """In Markdown."""
    head = (
        "", "median ms", "middle half of medians", "furthest", "first two: called different", "found 8 of 10 times",
        "with earlier ones: called different", "found 8 of 10 times",
    )  # fmt: skip
    keys = ("middle_half", "furthest", "first_wrong", "first_found", "following_wrong", "following_found")
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, row in found.items():
        cells = [
            f"{row['ms']:.3f}",
            *(f"{row[key]:.1%}" for key in keys),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, judge, print one Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profiles", type=int, default=200)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--busy", type=int, default=0)
    first = parser.add_mutually_exclusive_group()
    first.add_argument("--alone", action="store_true")
    first.add_argument("--prompt", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--again", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # what is forked has one thread
    machine, before = host.describe(), os.getloadavg()[0]
    if arguments.again:
        series = json.loads(arguments.again.read_text(encoding="utf-8"))
    else:
        with load(arguments.busy):
            if arguments.alone or arguments.prompt:
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            series = measured(arguments.profiles, arguments.runs, arguments.alone)
    if arguments.json:
        arguments.json.write_text(json.dumps(series), encoding="utf-8")
    found = {name: verdicts(runs) for name, runs in series.items()}
    print(
        f"{machine['model']}, {machine['cores']} cores, load {before:.1f} to {os.getloadavg()[0]:.1f}\n\n{table(found)}"
    )
    sys.exit(any(max(row["first_wrong"], row["following_wrong"]) > MOST_WRONG for row in found.values()))


if __name__ == "__main__":
    main()
