"""Small networks that between them use every operator the pipeline knows; seeded, so that every run sees the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq.graph.store import hash_of
from edgeq.lidar.networks import PillarEncoder, SparseConv3d, conv, gather_rows


class InvertedResidual(nn.Module):
    """MobileNet-like: expand, depthwise, project, residual add, global mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU6()
        )
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.head(x.mean((2, 3)))


class Neck(nn.Module):
    """Detector-like: stages, transposed convolution, concatenation, several heads in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up = nn.ConvTranspose2d(16, 8, 4, 2, 1)
        self.cls, self.box = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = F.relu(self.a(x))
        y = torch.cat([F.relu(self.up(F.relu(self.b(low)))), low], 1)
        return {"cls": self.cls(y), "box": self.box(y)}


class Attention(nn.Module):
    """Transformer-like: embedding, layer norm, softmax, GELU; linear layers are what can be integer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v)
        return x + self.down(F.gelu(self.up(x)))


class TwoInputs(nn.Module):
    """Nested inputs and outputs: a tensor and a dictionary in, a tuple with a list out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.other = nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor, extra: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        y = F.relu(self.image(x) + self.other(extra["depth"]))
        return F.max_pool2d(y, 2), [y.mean((2, 3)), F.avg_pool2d(y, 2)]


class Pillars(nn.Module):
    """A pillar detector's front: points encoded, pooled, scattered to an image by a table of cells, two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = PillarEncoder(10, 12)
        self.convs = nn.Sequential(conv(12, 16, 2), conv(16, 8))

    def forward(self, pillars: Tensor, table: Tensor) -> Tensor:
        rows = self.encoder(pillars)
        return self.convs(gather_rows(rows, table).view(1, 8, 12, 12).permute(0, 3, 1, 2))


class Sparse(nn.Module):
    """Two sparse 3D convolutions, the first on the network's input, and a table of two axes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = SparseConv3d(6, 9), SparseConv3d(9, 16, taps=8)

    def forward(self, voxels: Tensor, same: Tensor, down: Tensor) -> Tensor:
        return self.second(self.first(voxels, same), down)


def seeded(network: type[nn.Module]) -> nn.Module:
    """`network` with fixed weights and BatchNorm statistics that are not the identity."""
    torch.manual_seed(0)
    made = network()
    for module in made.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.2)  # type: ignore[arg-type] # a buffer
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type] # a buffer
    return made.eval()


def trained() -> nn.Sequential:
    """A small network in the middle of its training, its BatchNorm frozen."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 4, 1))
    net.train()
    net[1].eval()
    net[0].bias.requires_grad_(False)  # type: ignore[union-attr] # a parameter
    return net


def inputs(network: type[nn.Module], seed: int = 0) -> tuple[Any, ...]:
    """Random inputs of the shape `network` takes."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, 16, 16, generator=generator)
    if network is Attention:
        return (torch.randint(0, 50, (1, 6), generator=generator),)
    if network is TwoInputs:
        return image, {"depth": torch.randn(1, 2, 16, 16, generator=generator)}
    if network is Pillars:  # 20 pillars of 5 points in 96 cells; 20 picks the row of zeros
        cells = torch.randint(0, 21, (96,), generator=generator)
        return torch.randn(1, 10, 20, 5, generator=generator), cells
    if network is Sparse:  # 30 sites and their 27 neighbours, 7 coarser sites
        tables = [torch.randint(0, 31, shape, generator=generator) for shape in ((30, 27), (7, 8))]
        return torch.randn(30, 6, generator=generator), *tables
    return (image,)


ALL: tuple[type[nn.Module], ...] = (InvertedResidual, Neck, Attention, TwoInputs, Pillars, Sparse)


def sealed(folder: Path) -> Path:
    """`folder`, a model's, whose manifest knows every file as it is now, so that what a test wrote by hand is read."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        manifest["files"][name] = hash_of(folder / name)
    found = [p for p in (*folder.glob("*.json"), *folder.glob("*/*")) if p.name != "manifest.json"]
    manifest["artifacts"] = {
        p.relative_to(folder).as_posix(): hash_of(p) for p in found if p.name not in manifest["files"]
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
