"""What learned rounding gains and costs: ResNet-20 on CIFAR-10 at few bits, one row a recipe.

python tools/bench_reconstruct.py [--precision w4a8] [--recipe NAME ...] [--draws 3] [--threads 2]

Every recipe is calibrated on several draws of 256 training images (the first is the example's own) and judged on all test
images by its QDQ program. Seconds are those of `edgeq.quantize`, capture and conversion included. Needs EDGEQ_DATA.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import sys
import time
import zipfile

import numpy as np
import torch
from accuracy import ROOT, machine, table
from torch import Tensor

from edgeq import api
from edgeq.calib.recipes import RECIPES
from edgeq.task import load_task

IMAGES = 256
HEADER = ("recipe", "top-1 %, each draw", "mean", "− float, points", "seconds, each draw")


def draw(seed: int) -> list[tuple[Tensor, ...]]:
    """256 training images; the example's own for seed 0."""
    import resnet20_cifar10 as example
    from PIL import Image

    if seed == 0:
        return list(example.calibration(IMAGES))
    with zipfile.ZipFile(example.DATA / "cifar10" / "train_jpeg.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        chosen = np.random.default_rng(seed).choice(len(names), IMAGES, replace=False)
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(names[i]))).convert("RGB")) for i in chosen]
    return [(example.prepare(p[None]),) for p in pixels]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", default="w4a8")
    parser.add_argument("--recipe", choices=tuple(RECIPES), action="append", help="these alone; repeat for several")
    parser.add_argument("--draws", type=int, default=3, help="sets of calibration images")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    task = load_task(ROOT / "examples" / "resnet20_cifar10.py")
    assert task.evaluate is not None
    data, rows, real = [draw(seed) for seed in range(args.draws)], [], None
    for name in args.recipe or ("minmax", "default", "adaround"):
        found, seconds = [], []
        for frames in data:
            start = time.perf_counter()
            model = api.quantize(
                dataclasses.replace(task, calibration=lambda frames=frames: frames),
                recipe=name,
                target="simulated",
                precision=args.precision,
            )
            seconds.append(time.perf_counter() - start)
            found.append(100 * task.evaluate(lambda *x, model=model: model.qdq(x))["top1"])
            print(f"{name}: {found[-1]:.2f} % after {seconds[-1]:.0f} s", file=sys.stderr, flush=True)
            real = real or 100 * task.evaluate(lambda *x, model=model: model.float(x))["top1"]
        each, times = (" / ".join(f"{v:.{n}f}" for v in values) for values, n in ((found, 2), (seconds, 0)))
        mean = statistics.mean(found)
        rows.append([name, each, f"{mean:.2f}", f"{mean - real:+.2f}", times])
    print(f"ResNet-20, {args.precision}, {IMAGES} calibration images, float {real:.2f} %, {args.threads} threads\n")
    print(table(HEADER, rows))
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
