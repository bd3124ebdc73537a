"""Which sensitivity to trust: each measure beside the rise of ResNet-20's test loss when one layer has 3 or 4 bits.

python tools/bench_sensitivity.py [--precision NAME ...] [--images N] [--plans N] [--measure NAME ...] [--json FILE]

For every layer with weights the true number is what that layer alone in the precision, all else float, does on CIFAR-10's test
images: the rise of cross entropy, and in a second table the KL divergence from float's answers. Measures see 64 training images
without labels. Tables give Spearman's rank correlation over layers with its 95 % bootstrap interval, and the same over random
plans, each layer in one of the precisions or w8a8, where a measure's numbers are added. What was computed is kept in --cache, so
an interrupted run goes on where it stopped. Needs the folder EDGEQ_DATA.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: waiting threads would count as CPU seconds

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accuracy import ROOT, cifar10, machine, table
from scipy.stats import rankdata
from torch import Tensor

from edgeq import backends
from edgeq.assembly import confirmed, silent
from edgeq.calib import sensitivity
from edgeq.calib.curvature import squares, weighted
from edgeq.calib.recipes import recipe
from edgeq.calib.sensitivity import eigenvalue
from edgeq.calib.study import Change, Study
from edgeq.task import load_task

PRECISIONS = ("w4a8", "w3a8")
TRUTHS = (
    "cross entropy",
    "errors",
    "KL from float",
)  # whose rise on the test images is true; errors: share of wrong answers
STACK = 100  # test images at once
RESAMPLES = 2_000


Measured = dict[tuple[str, str], float]  # (layer, precision) → number


class Stored(dict[str, float]):
    """Numbers that lie in a file from the moment on that they are found."""

    def __init__(self, path: Path) -> None:
        super().__init__(json.loads(path.read_text()) if path.is_file() else {})
        self.path = path

    def __setitem__(self, key: str, value: float) -> None:
        super().__setitem__(key, value)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self))
        part.replace(self.path)


class Truth:
    """What changes do to the outputs on the test images, kept."""

    def __init__(self, study: Study, images: int, kept: Stored) -> None:
        self.study, self.kept = study, kept
        self.test, self.labels = cifar10(images)
        self.float: Tensor | None = None

    def rise(self, lines: Change) -> tuple[float, ...]:
        """By the change, in the order of TRUTHS."""
        return tuple(after - before for after, before in zip(self._of(lines), self._of({}), strict=True))

    def _of(self, lines: Change) -> list[float]:
        told = repr((self.study.key, len(self.test), sorted(lines.items())))
        keys = [f"{name} {hashlib.sha256(told.encode()).hexdigest()}" for name in TRUTHS]
        if not all(key in self.kept for key in keys):
            self.float = self._logits({}) if self.float is None else self.float
            logits, wanted = self._logits(lines), torch.from_numpy(self.labels).long()
            p, q = self.float.log_softmax(1), logits.log_softmax(1)
            wrong = (logits.argmax(1) != wanted).double()
            found = F.nll_loss(q, wanted), wrong.mean(), (p.exp() * (p - q)).sum(1).mean()
            for key, value in zip(keys, found, strict=True):
                self.kept[key] = float(value)
        return [self.kept[key] for key in keys]

    def _logits(self, lines: Change) -> Tensor:
        variant = self.study.change(lines)
        return torch.cat([self.study.predict(variant, (part,))[0] for part in self.test.split(STACK)]).double()


def others(study: Study, kept: Stored) -> dict[str, Callable[[Sequence[Change]], list[float]]]:
    """What needs no measure of its own: how far the weights move, and HAWQ's own order."""
    layers = {layer.key: layer for layer in weighted(study)}

    def distance(changes: Sequence[Change]) -> list[float]:
        return [sum(squares(study, layers, lines).values()) for lines in changes]

    def ordered_bits(changes: Sequence[Change]) -> list[float]:
        found = eigenvalue.largest(study, list(layers.values()), silent, kept)
        return [sum(found[k] / layers[k].count for k, p in lines.items() if p != "w8a8") for lines in changes]

    return {"‖ΔW‖² alone": distance, "λ / n (HAWQ's order of bits)": ordered_bits}


def rank(found: Sequence[float], true: Sequence[float]) -> str:
    """Spearman's correlation with its bootstrap interval."""
    count = len(found)
    drawn = np.random.default_rng(0).integers(0, count, (RESAMPLES, count))
    low, high = np.nanquantile(_correlated(np.asarray(found)[drawn], np.asarray(true)[drawn]), (0.025, 0.975))
    whole = _correlated(np.asarray([found]), np.asarray([true]))[0]
    return f"{whole:+.2f} [{low:+.2f}, {high:+.2f}]"


def _correlated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row, NaN where one is constant."""
    x, y = (rankdata(part, axis=1) - (part.shape[1] + 1) / 2 for part in (a, b))
    with np.errstate(invalid="ignore"):
        return np.asarray((x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1)))


def plans(keys: Sequence[str], precisions: Sequence[str], count: int) -> list[Change]:
    """Each layer in one of the precisions, or in w8a8."""
    random = np.random.default_rng(0)
    choices = (*precisions, "w8a8")
    return [{key: choices[random.integers(len(choices))] for key in keys} for _ in range(count)]


def numbers(
    name: str, study: Study, keys: Sequence[str], precisions: Sequence[str], kept: Stored
) -> tuple[Measured, float]:
    """(layer, precision) → the measure called `name`, and the CPU seconds that it took when it was measured."""
    start, found = time.process_time(), Measured()
    given = others(study, kept)
    for precision in (*precisions, "w8a8"):
        changes = [{key: precision} for key in keys]
        made = given[name](changes) if name in given else sensitivity.measure(name, study, changes, silent, kept)
        found.update({(key, precision): value for key, value in zip(keys, made, strict=True)})
    spent = f"seconds {name} {study.key} {' '.join(precisions)}"
    if spent not in kept:
        kept[spent] = time.process_time() - start
    return found, kept[spent]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", action="append", help=f"default: {', '.join(PRECISIONS)}")
    parser.add_argument("--measure", action="append", help="default: all but metric; repeat for several")
    parser.add_argument("--images", type=int, default=3000, help="of the test set")
    parser.add_argument("--plans", type=int, default=40, help="random plans")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "accuracy")
    args = parser.parse_args()
    precisions = args.precision or list(PRECISIONS)
    args.cache.mkdir(parents=True, exist_ok=True)
    kept = Stored(args.cache / "sensitivity.json")
    task = dataclasses.replace(load_task(ROOT / "examples" / "resnet20_cifar10.py"), evaluate=None)
    captured, batches = confirmed(task)
    study = Study(captured, backends.target("simulated"), recipe("default"), list(batches or ()))
    truth = Truth(study, args.images, kept)
    layers = {layer.key: layer for layer in weighted(study)}
    keys = [k for k in layers if squares(study, layers, {k: precisions[0]})[k] > 0]  # a shortcut's 0 and 1 are exact
    true = {(k, p): truth.rise({k: p}) for p in precisions for k in keys}
    drawn, true_plans = plans(keys, precisions, args.plans), []
    for done, plan in enumerate(drawn, start=1):
        true_plans.append(truth.rise(plan))
        told = ", ".join(f"{name} {rise:+.4f}" for name, rise in zip(TRUTHS, true_plans[-1], strict=True))
        print(f"plan {done} of {len(drawn)}: {told}", file=sys.stderr, flush=True)
    measured, seconds = dict[str, Measured](), dict[str, float]()
    for name in args.measure or [*(n for n in sensitivity.names() if n != "metric"), *others(study, kept)]:
        measured[name], seconds[name] = numbers(name, study, keys, precisions, kept)
        print(f"{name}: {seconds[name]:.1f} CPU s", file=sys.stderr, flush=True)
    for index, name in enumerate(TRUTHS):
        measured[f"the rise of {name} itself"] = {line: rises[index] for line, rises in true.items()}
    print(f"ResNet-20, {len(keys)} layers, {args.images} test images, {len(study.frames)} frames without labels")
    for index in (0, 2):
        rows = []
        for name, found in measured.items():
            over = [rank([found[k, p] for k in keys], [true[k, p][index] for k in keys]) for p in precisions]
            sums = [sum(found.get(line, 0.0) for line in plan.items()) for plan in drawn]
            rows.append(
                [
                    name,
                    f"{seconds[name]:.1f}" if name in seconds else "",
                    *over,
                    rank(sums, [t[index] for t in true_plans]),
                ]
            )
        header = ("measure", "CPU s", *(f"one layer {p}" for p in precisions), f"{len(drawn)} plans, added")
        print(f"\nRise of {TRUTHS[index]}\n\n{table(header, rows)}")
    print(f"\n{machine()}")
    if args.json:
        plain = {name: {" ".join(line): value for line, value in found.items()} for name, found in measured.items()}
        args.json.write_text(json.dumps({"numbers": plain, "plans": drawn, "rises": true_plans}, indent=1))


if __name__ == "__main__":
    main()
