"""PointPillars on KITTI: the dense network (BEV backbone, neck and heads) behind pillar encoder and scatter.

Weights and frames come from the folder EDGEQ_DATA (pointpillars_kitti/, kitti/); KITTI is CC BY-NC-SA 3.0.
The pillar encoder and the scatter run in float on the host; decoding boxes is not part of the network.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

DATA = Path(os.environ.get("EDGEQ_DATA", "../shared/data"))
META = json.loads((DATA / "pointpillars_kitti" / "meta.json").read_text()) if DATA.is_dir() else {}
BEV = (64, 496, 432)
# frames of the drive that is used for evaluation elsewhere
DRIVE_0005 = {"000310", "000339", "000685", "002024", "003015", "004371", "004558", "004736", "005083", "007414"}
PREPROCESSING = {"input": "BEV pseudo image", "layout": "NCHW", "pillars": "see META"}


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, BatchNorm already folded, ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU())


def up(inputs: int, outputs: int) -> nn.Sequential:
    """4×4 transposed convolution that doubles the size, ReLU."""
    return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU())


class Backbone(nn.Module):
    """Head convolutions, three strided stages, two upsampling steps with concatenation, three 1×1 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.h0, self.h1, self.h2, self.h3 = conv(64, 16), conv(16, 16), conv(16, 32, 2), conv(32, 64)
        self.b1a, self.b1b = conv(64, 64), conv(64, 64, 2)
        self.b2a, self.b2b = conv(64, 128), conv(128, 128, 2)
        self.b3a, self.b3b = conv(128, 256), conv(256, 256, 2)
        self.up1a, self.up1c = up(256, 128), conv(256, 128)
        self.up2a, self.up2c = up(128, 64), conv(128, 64)
        self.cls, self.box, self.dir = nn.Conv2d(64, 18, 1), nn.Conv2d(64, 42, 1), nn.Conv2d(64, 12, 1)

    def forward(self, bev: Tensor) -> dict[str, Tensor]:
        """[1, 64, 496, 432] → cls [1, 18, 124, 108], box [1, 42, 124, 108], dir [1, 12, 124, 108]."""
        x1 = self.b1b(self.b1a(self.h3(self.h2(self.h1(self.h0(bev))))))
        x2 = self.b2b(self.b2a(x1))
        x3 = self.b3b(self.b3a(x2))
        y2 = self.up1c(torch.cat([self.up1a(x3), x2], 1))
        y1 = self.up2c(torch.cat([self.up2a(y2), x1], 1))
        return {"cls": self.cls(y1), "box": self.box(y1), "dir": self.dir(y1)}


def model() -> nn.Module:
    """The dense network with its trained weights, 2.25 M parameters."""
    weights = load_file(DATA / "pointpillars_kitti" / "pointpillars_kitti_fp32.safetensors")
    network = Backbone()
    network.load_state_dict({k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")})
    return network.eval()


def example_inputs() -> tuple[Tensor, ...]:
    """One BEV pseudo image, float32 [1, 64, 496, 432]."""
    return (torch.zeros(1, *BEV),)


def calibration(count: int = 8) -> Iterator[tuple[Tensor, ...]]:
    """KITTI training frames as BEV pseudo images, without the frames of drive 0005."""
    frames = [p for p in sorted((DATA / "kitti" / "train" / "velodyne").iterdir()) if p.stem not in DRIVE_0005]
    return ((bev(path),) for path in frames[:count])


def evaluate(predict: Callable[..., tuple[Tensor, ...]]) -> dict[str, float]:
    """SQNR in dB of each head's raw output against the float network on evaluation frames (EDGEQ_LIMIT of them)."""
    network = model()
    limit = int(os.environ.get("EDGEQ_LIMIT", "12"))
    signal, noise = np.zeros(3), np.zeros(3)
    for path in sorted((DATA / "kitti" / "eval" / "velodyne").iterdir())[:limit]:
        image = bev(path)
        with torch.no_grad():
            wanted = tuple(network(image).values())
        for i, (a, b) in enumerate(zip(wanted, predict(image), strict=True)):
            signal[i] += float(a.double().square().sum())
            noise[i] += float((a - b).double().square().sum())
    decibel = 10 * np.log10(signal / np.maximum(noise, 1e-30))
    return {f"{name}_sqnr_db": float(d) for name, d in zip(("cls", "box", "dir"), decibel, strict=True)}


def bev(path: Path) -> Tensor:
    """One velodyne file → pseudo image [1, 64, 496, 432]: pillars, features, Linear 10→64, ReLU, max, scatter."""
    points = np.fromfile(path, dtype=np.float32).reshape(-1, 4)
    weights = load_file(DATA / "pointpillars_kitti" / "pointpillars_kitti_fp32.safetensors")
    features, cells = pillars(points)
    with torch.no_grad():
        encoded = F.relu(F.linear(features, weights["pfn.linear.weight"], weights["pfn.linear.bias"])).amax(1)
    image = torch.zeros(64, BEV[1] * BEV[2])
    image[:, cells] = encoded.T
    return image.view(1, *BEV)


def pillars(points: np.ndarray) -> tuple[Tensor, Tensor]:
    """Points [n, 4] → pillar features [p, 32, 10] (normalised, zero where padded) and cell index [p] = y·432 + x."""
    low, high = (np.array(bounds, np.float32) for bounds in (META["range"][:3], META["range"][3:]))
    points = points[np.all((points[:, :3] >= low) & (points[:, :3] < high), axis=1)]
    width, height = META["grid_xy"]
    size = np.array(META["voxel"][:2], np.float32)
    column, row = ((points[:, i] - low[i]) / size[i] for i in (0, 1))
    column, row = np.minimum(column.astype(int), width - 1), np.minimum(row.astype(int), height - 1)
    cells = row * width + column
    order = np.argsort(cells, kind="stable")
    points, cells = points[order], cells[order]
    unique, start, index = np.unique(cells, return_index=True, return_inverse=True)
    rank = np.arange(len(cells)) - start[index]
    kept = (rank < META["max_points"]) & (index < META["max_pillars"])
    points, index, rank = points[kept], index[kept], rank[kept]
    unique = unique[: META["max_pillars"]]
    count = np.bincount(index, minlength=len(unique)).astype(np.float32)
    mean = (
        np.stack([np.bincount(index, points[:, i], len(unique)) for i in range(3)], 1).astype(np.float32)
        / count[:, None]
    )
    centre = np.stack(
        [
            (unique % width + 0.5) * size[0] + low[0],
            (unique // width + 0.5) * size[1] + low[1],
            np.full(len(unique), (low[2] + high[2]) / 2),
        ],
        1,
    ).astype(np.float32)
    raw = np.concatenate([points, points[:, :3] - mean[index], points[:, :3] - centre[index]], 1)
    features = np.zeros((len(unique), META["max_points"], 10), np.float32)
    features[index, rank] = raw * np.array(META["feature_weight"], np.float32) + np.array(
        META["feature_bias"], np.float32
    )
    return torch.from_numpy(features), torch.from_numpy(unique)
