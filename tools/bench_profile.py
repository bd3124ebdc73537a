"""Do a profile's rows explain the total? Every runtime on networks of milliseconds, on this machine, limits checked.

python tools/bench_profile.py [FOLDER ...] [--runs 60] [--threads 1] [--alone]

FOLDER: written by edgeq quantize; without one, EfficientNet-Lite0 and CenterPoint-Pillar are quantized first (some minutes).
--alone keeps other programs off this one's core while it measures, by real-time priority (Linux; needs root).
Exit status 1 where an artefact's unattributed row is above 10 % of its total, or a layer that computes has no row.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from markers import README

import edgeq
from edgeq import api, backends
from edgeq.devices import host
from edgeq.run.files import exported

NETWORKS = ("efficientnet_lite0", "centerpoint_pillar")
MOST_UNATTRIBUTED = 0.1  # of the total
VIEWS = ("reshape", "permute", "slice", "select", "squeeze", "unsqueeze")  # a runtime may need no operator for them
HEAD = ("", "total ms", "p10", "p90", "operators", "inserted", "overhead", "waiting", "unattributed", "scale", "layers")


def line(name: str, report: dict[str, Any], wanted: set[str]) -> tuple[list[str], list[str]]:
    """A row of the table, and what is wrong in sentences."""
    total = report["total_ms"]["median"]
    waiting = [r["ms"] for r in report["rows"] if r["name"].startswith("waiting")]
    spent = {kind: math.fsum(r["ms"] for r in report["rows"] if r["kind"] == kind) for kind in
             ("operator", "inserted", "overhead", "unattributed")}  # fmt: skip
    spent["overhead"] -= math.fsum(waiting)
    parts = [spent["operator"], spent["inserted"], spent["overhead"], math.fsum(waiting), spent["unattributed"]]
    missing = {key for key in wanted if key.rsplit("/", 1)[-1].split("#")[0] not in VIEWS} - {
        key for row in report["rows"] for key in row["layers"]
    }
    wrong = []
    if abs(math.fsum(parts) - total) > 1e-6 * total:
        wrong.append(f"{name}: rows add up to {math.fsum(parts):.4f} ms of {total:.4f} ms")
    if spent["unattributed"] > MOST_UNATTRIBUTED * total:
        wrong.append(f"{name}: {spent['unattributed'] / total:.1%} of the total is unattributed")
    if missing:
        wrong.append(f"{name}: no row names {', '.join(sorted(missing)[:5])}")
    spread = [f"{report['total_ms'][key]:.3f}" for key in ("median", "p10", "p90")]
    shares = [f"{part / total:.1%}" for part in parts]
    named = f"{len(wanted) - len(missing)}/{len(wanted)}"
    return [name, *spread, *shares, f"{report['row_scale']:.3f}", named], wrong


@contextmanager
def alone() -> Iterator[None]:
    """Real-time priority for this thread."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def main() -> None:
    """Profile, print one Markdown table, and say what is beyond its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", action="store_true")
    arguments = parser.parse_args()
    machine = host.describe()
    load = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    print(
        f"{machine['model']}, {machine['cores']} cores, load {load}; {arguments.threads} thread(s), {arguments.runs} runs\n"
    )
    print("| " + " | ".join(HEAD) + " |\n|---|" + "---:|" * (len(HEAD) - 1))
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for folder in arguments.folders or [Path(scratch) / name for name in NETWORKS]:
            if not folder.is_dir():
                edgeq.quantize(README.parent / "examples" / f"{folder.name}.py", recipe="minmax", output=folder)
            model = edgeq.load(folder)
            here = [name for name in backends.RUNTIMES if backends.runs_here(name) == "yes"]
            for name in set(here) - set(exported(model)):
                edgeq.export(model, name)
            for name in set(here) - set(exported(model, "float")):
                edgeq.export(model, name, float_twin=True)
            with alone() if arguments.alone else nullcontext():
                found = api.profile(model, to=here, runs=arguments.runs, threads=arguments.threads)
            for name, row in found["backends"].items():
                for report, what, labels in ((row, "int8", model.labels), (row["float"], "float", model.twin_labels)):
                    cells, sentences = line(f"{folder.name}, {name} {what}", report, set(labels.values()))
                    print("| " + " | ".join(cells) + " |", flush=True)
                    wrong += sentences
    print("\n" + ("\n".join(wrong) or "every row's total is explained"))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
