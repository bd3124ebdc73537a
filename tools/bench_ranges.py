"""How the range methods differ on a sparse detector: every recipe's raw outputs on PointPillars, beside float.

python tools/bench_ranges.py [--frames N] [--recipe NAME ...]

The QDQ program runs, so the numbers are those of quantization itself, before any kernel's rounding. The last rows quantize
one layer alone and leave the others in float. Needs the folder EDGEQ_DATA.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accuracy import DETECTION_HEADER, HEADS, ROOT, decibel, detect, detection_row, kitti, machine, table
from torch import Tensor

from edgeq import api, backends
from edgeq.calib.recipes import RECIPES
from edgeq.graph.annotate import default_plan
from edgeq.graph.package import QuantizedModel
from edgeq.spec import QuantPlan
from edgeq.task import Task, load_task

ALONE = ("h0.0/conv2d", "h3.0/conv2d", "up2c.0/conv2d")  # layers quantized alone, by min-max


def alone(task: Task, layer: str) -> QuantPlan:
    """A plan that quantizes `layer` and nothing else."""
    plan = default_plan(api.capture_task(task), backends.target("portable"), "minmax", "w8a8")
    return QuantPlan(plan.target, plan.recipe, {k: "w8a8" if k == layer else "fp32" for k in plan.layers})


def frame_spread(sums: np.ndarray) -> list[str]:
    """Lowest and highest SQNR over frames of each head, all cells then positive cells."""
    each = decibel(sums)
    return [f"{low:.1f} … {high:.1f}" for low, high in zip(each.min(0), each.max(0), strict=True)]


def measure(model: QuantizedModel, frames: Sequence[tuple[Tensor, ...]], cache: Path) -> np.ndarray:
    """head_errors of the QDQ program, [frames, 14]."""
    return detect(model, frames, cache, ("QDQ",))["QDQ"]


def main() -> None:
    """Parse the command line, quantize with each recipe, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--recipe", choices=tuple(RECIPES), action="append", help="these alone; repeat for several")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "accuracy")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    task = load_task(ROOT / "examples" / "pointpillars_kitti.py")
    frames = kitti(args.frames)
    rows, spreads = [], []
    for name in args.recipe or RECIPES:
        sums = measure(api.quantize(task, recipe=name), frames, args.cache)
        rows.append(detection_row(name, sums))
        spreads.append([name, *frame_spread(sums)])
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    for layer in () if args.recipe else ALONE:
        sums = measure(api.quantize(task, plan=alone(task, layer)), frames, args.cache)
        rows.append(detection_row(f"minmax, {layer} alone", sums))
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    print(f"PointPillars, {len(frames)} evaluation frames, SQNR in dB against float, pooled over frames\n")
    print(table(DETECTION_HEADER, rows))
    print("\nlowest … highest of a frame\n")
    print(table(("", *(f"{h}, {c}" for c in ("all cells", "positive") for h in HEADS)), spreads))
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
