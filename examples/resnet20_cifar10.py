"""ResNet-20 on CIFAR-10. Weights (akamaster/pytorch_resnet_cifar10, BSD-2) and images come from the folder EDGEQ_DATA.

EDGEQ_DATA must hold resnet_cifar10/resnet20.safetensors, cifar10/test_3000.npz and cifar10/train_jpeg.zip.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

DATA = Path(os.environ.get("EDGEQ_DATA", "../shared/data"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSING = {"color": "RGB", "scale": 1 / 255, "mean": MEAN, "std": STD, "layout": "NCHW"}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; the shortcut of a striding block subsamples and pads channels with zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C', H/stride, W/stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """Three stages of three blocks, 16, 32 and 64 channels; 0.27 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        for index, (inputs, outputs, stride) in enumerate(widths, start=1):
            blocks = [BasicBlock(inputs, outputs, stride), *(BasicBlock(outputs, outputs, 1) for _ in range(2))]
            self.add_module(f"layer{index}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 32, 32] → logits [N, 10]."""
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in ("layer1", "layer2", "layer3"):
            x = self.get_submodule(stage)(x)
        logits: Tensor = self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))
        return logits


def model() -> nn.Module:
    """The trained network."""
    network = ResNet20()
    network.load_state_dict(load_file(DATA / "resnet_cifar10" / "resnet20.safetensors"))
    return network.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """One image, float32 [1, 3, 32, 32]."""
    return (torch.zeros(1, 3, 32, 32),)


def calibration(count: int = 256) -> Iterator[tuple[Tensor, ...]]:
    """Training images, the classes in turn."""
    from PIL import Image

    with zipfile.ZipFile(DATA / "cifar10" / "train_jpeg.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
        for name in names[:: len(names) // count][:count]:
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            yield (prepare(pixels[None]),)


def evaluate(predict: Callable[..., tuple[Tensor, ...]]) -> dict[str, float]:
    """Top-1 on the test images; EDGEQ_LIMIT takes the first so many only."""
    images, labels = test_images()
    hits = [int(predict(images[i : i + 1])[0].argmax()) == int(labels[i]) for i in range(len(labels))]
    return {"top1": float(np.mean(hits))}


def test_images() -> tuple[Tensor, np.ndarray]:
    """Images [N, 3, 32, 32] and labels [N]."""
    stored = np.load(DATA / "cifar10" / "test_3000.npz")
    limit = int(os.environ.get("EDGEQ_LIMIT", len(stored["y"])))
    return prepare(stored["x"][:limit]), stored["y"][:limit]


def prepare(pixels: np.ndarray) -> Tensor:
    """uint8 [N, 32, 32, 3] → float32 [N, 3, 32, 32], normalised."""
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    scaled = (pixels.astype(np.float32) / 255 - mean) / std
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)))
