"""Calibration without data beside real data: ResNet-20 on CIFAR-10 test images, every source with the same rounding.

python tools/bench_datafree.py [--source NAME ...] [--precision NAME ...] [--recipe NAME] [--seeds N] [--images N]

Each source makes its images once for a seed; every precision of the simulated target is calibrated on the same ones. Differences
are to real data of the same seed, image by image over all seeds, with their 95 % bootstrap interval; KL divergence and SQNR are
those of the logits to the float network's. What was computed is kept in --cache. Needs the folder EDGEQ_DATA.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads would count as CPU seconds

import argparse
import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import torch
from accuracy import ROOT, cifar10, machine, paired, table
from torch import Tensor

from edgeq import api
from edgeq.assembly import silent
from edgeq.calib.data import sources
from edgeq.calib.written import sourced, told
from edgeq.graph.capture import Captured, capture
from edgeq.task import Task

BATCH = 8  # images a call: numbers are per tensor, and calls cost more than images
PRECISIONS = ("w8a8", "w4a8", "w6a6", "w4a4")
HEADER = ("source", "top-1 % by seed", "− real, points", "95 % interval", "KL", "SQNR dB")


def network() -> tuple[torch.nn.Module, Captured]:
    """ResNet-20 and its graph, for BATCH images at once."""
    import resnet20_cifar10 as task

    module = task.model()
    return module, capture(module, (torch.zeros(BATCH, 3, 32, 32),))


def images_of(source: str, seed: int, images: int, cache: Path) -> tuple[list[tuple[Tensor, ...]], float | None]:
    """Batches of a source, and the CPU seconds that they took; none for real images, of which each seed takes others."""
    import resnet20_cifar10 as task

    if source == "real":
        every = [x for (x,) in task.calibration(images * 8)]
        return [(torch.cat(every[seed::8][i : i + BATCH]),) for i in range(0, images, BATCH)], None
    made = sourced(source, {"images": images, "seed": seed}, (), source)
    code = "".join(path.read_text() for path in sorted((ROOT / "calib" / "data").rglob("*.py")))
    name = hashlib.sha256(repr((told(made), BATCH, code)).encode()).hexdigest()[:12]
    kept = cache / f"datafree-{source}-{name}.npz"
    if not kept.is_file():
        module, captured = network()
        start = time.process_time()
        batches = sources.made(made, module, captured, None, silent)
        np.savez(kept, x=torch.stack([x for (x,) in batches]).numpy(), seconds=time.process_time() - start)
    held = np.load(kept)
    return [(x,) for x in torch.from_numpy(held["x"])], float(held["seconds"])


def logits(batches: list[tuple[Tensor, ...]], recipe: str, precision: str, test: Tensor, cache: Path) -> np.ndarray:
    """[N, 10] of the QDQ program that was calibrated on `batches`."""
    import resnet20_cifar10 as task

    told = hashlib.sha256(repr((recipe, precision)).encode() + b"".join(x.numpy().tobytes() for (x,) in batches))
    kept = cache / f"datafree-{precision}-{recipe}-{told.hexdigest()[:12]}.npy"
    if not kept.is_file():
        given = Task("resnet20", task.model, lambda: (torch.zeros(BATCH, 3, 32, 32),), lambda: batches)
        model = api.quantize(given, recipe=recipe, target="simulated", precision=precision)
        np.save(kept, run(model.qdq, test))
    found: np.ndarray = np.load(kept)
    return found


def run(predict: object, test: Tensor) -> np.ndarray:
    """Logits of all test images, BATCH at a time."""
    with torch.no_grad():
        answers = [predict((part,)) for part in test.split(BATCH)]  # type: ignore[operator] # a model's call
    return torch.cat([logit for (logit,) in answers]).numpy()


def divergence(real: np.ndarray, made: np.ndarray) -> float:
    """Mean KL(softmax of `real` ‖ softmax of `made`)."""
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), 1) for x in (real, made))
    return float((p.exp() * (p - q)).sum(1).mean())


def decibel(real: np.ndarray, made: np.ndarray) -> float:
    """Power of the float logits over that of the difference."""
    return float(10 * np.log10(np.square(real).sum() / np.square(real - made).sum()))


def rows(
    precision: str, args: argparse.Namespace, test: Tensor, labels: np.ndarray, real: np.ndarray
) -> list[list[str]]:
    """A line of the table for each source."""
    hits: dict[str, list[np.ndarray]] = {}
    found = []
    for source in ("real", *args.source):
        answers = []
        for seed in range(args.seeds):
            batches, _ = images_of(source, seed, args.images, args.cache)
            answers.append(logits(batches, args.recipe, precision, test, args.cache))
        hits[source] = [(a.argmax(1) == labels).astype(float) for a in answers]
        less = np.mean(hits[source], 0) - np.mean(hits["real"], 0)  # of each image, over seeds
        apart = paired(100 * less)
        between = "" if source == "real" else f"[{apart.low:+.2f}, {apart.high:+.2f}]"
        found.append(
            [
                source,
                " / ".join(f"{100 * h.mean():.2f}" for h in hits[source]),
                "" if source == "real" else f"{apart.mean:+.2f}",
                between,
                " / ".join(f"{divergence(real, a):.4f}" for a in answers),
                " / ".join(f"{decibel(real, a):.1f}" for a in answers),
            ]
        )
        print("  ".join([precision, *found[-1]]), file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Parse the command line, distil, quantize, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--source", choices=sources.names(), action="append", help="default: all that fit; repeat for several"
    )
    parser.add_argument("--precision", action="append", help=f"default: {', '.join(PRECISIONS)}")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=32, help="a multiple of 8")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "accuracy")
    args = parser.parse_args()
    args.source = args.source or ["zeroq", "genie", "noise"]
    args.cache.mkdir(parents=True, exist_ok=True)
    test, labels = cifar10(None)
    import resnet20_cifar10 as task

    module = task.model()
    real = run(lambda inputs: (module(*inputs),), test)
    told_rows = []
    for source in args.source:
        seconds = [images_of(source, seed, args.images, args.cache)[1] or 0.0 for seed in range(args.seeds)]
        told_rows.append([source, " / ".join(f"{s:.1f}" for s in seconds)])
        print("  ".join(told_rows[-1]), file=sys.stderr, flush=True)
    print(
        f"ResNet-20, float {100 * (real.argmax(1) == labels).mean():.2f} %, {args.images} images, recipe {args.recipe}\n"
    )
    print(table(("source", f"CPU seconds for {args.images} images"), told_rows) + "\n")
    for precision in args.precision or PRECISIONS:
        print(f"{precision}\n\n{table(HEADER, rows(precision, args, test, labels, real))}\n", flush=True)
    print(machine())


if __name__ == "__main__":
    main()
