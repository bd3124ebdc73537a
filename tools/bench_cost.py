"""What calibration costs: a recipe's pass and resolution beside bare forward passes over the same batches, and memory.

python tools/bench_cost.py [--network resnet20|efficientnet|pointpillars ...]

Forward passes are those of the captured graph. Data is read beforehand. Everything is timed in one process on one thread;
peak memory is that of a fresh process that quantizes. Needs the folder EDGEQ_DATA.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accuracy import ROOT, TASKS, machine, table
from torch import Tensor

from edgeq import api, backends
from edgeq.calib.calibrate import calibrate
from edgeq.calib.recipes import RECIPES
from edgeq.graph.annotate import Annotation, annotate, default_plan
from edgeq.graph.capture import Captured, flatten
from edgeq.spec import Recipe
from edgeq.task import load_task

HEADER = (
    "network", "recipe", "batches", "forward s", "calibrate s", "ratio", "capture s", "convert s", "peak MiB", "imports MiB",
)  # fmt: skip
BATCHES = {"resnet20": 256, "efficientnet": 32, "pointpillars": 4}
REPEATS = 3


def forward_s(captured: Captured, data: Sequence[tuple[Tensor, ...]]) -> float:
    """Seconds of the captured graph's plain forward passes."""
    start = time.perf_counter()
    with torch.no_grad():
        for batch in data:
            captured.module(*batch)
    return time.perf_counter() - start


def calibrate_s(
    captured: Captured, annotation: Annotation, recipe: Recipe, data: Sequence[tuple[Tensor, ...]]
) -> float:
    """Seconds of observing the same batches and choosing every scale and weight."""
    start = time.perf_counter()
    calibrate(captured, annotation, recipe, data, api.silent)
    return time.perf_counter() - start


def measure(network: str, names: Sequence[str]) -> list[list[str]]:
    """One line for each recipe; forward and calibration passes alternate, medians of REPEATS."""
    task = load_task(ROOT / "examples" / f"{TASKS[network]}.py")
    assert task.calibration is not None
    data = [flatten(batch) for batch in task.calibration()][: BATCHES[network]]
    start = time.perf_counter()
    captured = api.capture_task(task)
    capture_s = time.perf_counter() - start
    target = backends.target("portable")
    forward_s(captured, data[:2])  # first calls choose kernels
    rows = []
    for name in names:
        plan = default_plan(captured, target, name)
        annotation = annotate(captured, target, plan)
        pairs = [
            (forward_s(captured, data), calibrate_s(captured, annotation, RECIPES[name], data)) for _ in range(REPEATS)
        ]
        bare, whole = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        _, resolved = calibrate(captured, annotation, RECIPES[name], data[:1], api.silent)
        start = time.perf_counter()
        api.assemble(task, captured, annotation, resolved, plan)
        convert_s = time.perf_counter() - start
        peak, imports = (f"{m:.0f}" for m in peak_mib(network, name))
        times = (f"{bare:.2f}", f"{whole:.2f}", f"{whole / bare:.2f}", f"{capture_s:.1f}", f"{convert_s:.1f}")
        rows.append([network, name, str(len(data)), *times, peak, imports])
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    return rows


def peak_mib(network: str, recipe: str) -> tuple[float, float]:
    """Largest resident memory of a process that quantizes the example's whole calibration set, and after imports alone."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", network, "--recipe", recipe], capture_output=True, text=True, check=True
    )
    peak, imports = done.stdout.split()
    return float(peak), float(imports)


def child(network: str, recipe: str) -> None:
    """Quantize and print the peak resident memory in MiB, then that before the work began."""
    imports = _resident_mib()
    api.quantize(ROOT / "examples" / f"{TASKS[network]}.py", recipe=recipe)
    print(_resident_mib(), imports)


def _resident_mib() -> float:
    """Peak so far. Linux's ru_maxrss begins at the parent's, so there the kernel's own figure of this program is read."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=tuple(TASKS), action="append", help="these alone; repeat for several")
    parser.add_argument("--recipe", choices=tuple(RECIPES), action="append", help="these alone; repeat for several")
    parser.add_argument("--child", choices=tuple(TASKS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        child(args.child, args.recipe[0])
        return
    rows = [row for network in args.network or TASKS for row in measure(network, args.recipe or tuple(RECIPES))]
    print(table(HEADER, rows))
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
