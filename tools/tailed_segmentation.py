"""A segmentation network with long tails and concatenations of unlike branches, and the scenes it learns, made by ourselves.

python tools/tailed_segmentation.py            trains it and says its mean IoU: some three CPU minutes, one thread

A scene has three bands of a sensor with Student noise (three degrees of freedom), a gain of its own, and hot pixels; classes
differ by level and by texture. The network joins a strided stem with its input, dilated branches with a pooled context and an
energy (a square), and each level of its decoder with a skip. Seeds are fixed; the weights are kept in build/, not committed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from accuracy import ROOT
from torch import Tensor, nn

from edgeq.task import Task

CLASSES: Final = 6
HEIGHT, WIDTH = 64, 96
STEPS, BATCH, RATE = 700, 8, 4e-3
FREEDOM, NOISE = 3, 0.15  # of Student's t, whose largest of 18,000 values is some thirty times its usual one
HOT, HEAT = 3e-4, 4.0  # share of hot pixels, and the mean of what they add
KEPT = ROOT / "build" / "tailed_segmentation.pt"
CALIBRATION, HELD_OUT = 1_000, 2_000  # first seeds of scenes that no training step sees


def scene(seed: int) -> tuple[Tensor, Tensor]:
    """Bands float32 [3, 64, 96] and classes int64 [64, 96] (0 is the ground) of the scene of that seed."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    classes = np.zeros((HEIGHT, WIDTH), np.int64)
    for _ in range(int(random.integers(5, 11))):
        kind = int(random.integers(1, CLASSES))
        y, x, height, width = random.uniform((0, 0, 6, 6), (HEIGHT, WIDTH, 22, 30))
        across, down = (columns - x) / width, (rows - y) / height
        inside = np.maximum(abs(across), abs(down)) < 0.5 if kind % 2 else across**2 + down**2 < 0.25
        classes[inside] = kind
    level = np.array([[0.0, 0.3, 0.3, 0.6, 0.15, 0.6], [0.1, 0.5, 0.1, 0.2, 0.4, 0.2], [0.2, 0.0, 0.4, 0.1, 0.3, 0.1]])
    phase, pitch = random.uniform(0, 6.28), random.uniform(1.4, 1.9)
    stripes = 0.25 * np.sin(pitch * columns + phase) * np.isin(classes, (2, 5))
    bands = level[:, classes] + stripes + NOISE * random.standard_t(FREEDOM, (3, HEIGHT, WIDTH))
    bands *= np.exp(0.25 * random.standard_normal())
    hot = random.random((HEIGHT, WIDTH)) < HOT
    bands += hot * HEAT * random.exponential(1.0, (HEIGHT, WIDTH))
    return torch.from_numpy(bands.astype(np.float32)), torch.from_numpy(classes)


class Block(nn.Sequential):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class Segmenter(nn.Module):
    """0.1 M parameters, logits at the input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = Block(3, 16), Block(19, 24, stride=2)
        self.second = nn.Sequential(Block(24, 40, stride=2), Block(40, 40))
        self.near, self.far, self.point = Block(40, 24, dilation=2), Block(40, 24, dilation=4), Block(40, 16, 1)
        self.contrast, self.context = nn.Conv2d(40, 8, 1), nn.Conv2d(40, 8, 1)
        self.joined = Block(24 + 24 + 16 + 8 + 8, 40, 1)
        self.up, self.last = Block(40 + 24, 24), Block(24 + 16 + 3, 16)
        self.head = nn.Conv2d(16, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 64, 96] → [N, 6, 64, 96]."""
        stem = self.stem(x)
        half = self.first(torch.cat((stem, x), 1))
        deep = self.second(half)
        contrast = self.contrast(deep)
        context = F.max_pool2d(self.context(deep), 5, 1, 2)
        deep = self.joined(
            torch.cat((self.near(deep), self.far(deep), self.point(deep), contrast * contrast, context), 1)
        )
        middle = self.up(torch.cat((F.interpolate(deep, scale_factor=2, mode="nearest"), half), 1))
        fine = torch.cat((F.interpolate(middle, scale_factor=2, mode="nearest"), stem, x), 1)
        answer: Tensor = self.head(self.last(fine))
        return answer


def trained(kept: Path = KEPT) -> Segmenter:
    """The network in eval mode; learned now, unless `kept` holds its weights."""
    torch.manual_seed(0)
    network = Segmenter()
    if kept.is_file():
        network.load_state_dict(torch.load(kept, weights_only=True))
        return network.eval()
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for step in range(STEPS):
        seen, wanted = (
            torch.stack(t) for t in zip(*(scene(10_000 + step * BATCH + i) for i in range(BATCH)), strict=True)
        )
        loss = F.cross_entropy(network(seen), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}", flush=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), kept)
    return network.eval()


def task() -> Task:
    """The trained network, calibrated on 64 scenes."""
    frames = [(scene(CALIBRATION + i)[0][None],) for i in range(64)]
    network = trained()
    return Task("tailed_segmentation", lambda: copy.deepcopy(network), lambda: frames[0], lambda: frames)


def mean_iou(answers: list[Tensor], wanted: list[Tensor]) -> float:
    """Mean over classes of intersection over union, in per cent; answers: class of each pixel, as `wanted`."""
    got, true = torch.stack(answers), torch.stack(wanted)
    each = [((got == k) & (true == k)).sum() / ((got == k) | (true == k)).sum().clamp(min=1) for k in range(CLASSES)]
    return 100 * float(torch.stack(each).mean())


def main() -> None:
    """Train, and print the float network's mean IoU on held-out scenes."""
    torch.set_num_threads(1)
    network, scenes = trained(), [scene(HELD_OUT + i) for i in range(100)]
    with torch.no_grad():
        answers = [network(bands[None])[0].argmax(0) for bands, _ in scenes]
    print(f"mean IoU {mean_iou(answers, [classes for _, classes in scenes]):.1f} % on {len(scenes)} held-out scenes")


if __name__ == "__main__":
    main()
