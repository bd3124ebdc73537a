"""Other ways of seeing: two images compared, pillars of points, cameras lifted into a map, video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from zoo.detection import BasicBlock, stem
from zoo.material import Recipe, Sample, picture


class Siamese(nn.Module):
    """One network for two images; how alike their embeddings are."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.PReLU(32),
            nn.Conv2d(32, 32, 3, 1, 1, groups=32, bias=False), nn.BatchNorm2d(32), nn.PReLU(32),
            nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64),
            nn.Conv2d(64, 128, 3, 2, 1, bias=False), nn.BatchNorm2d(128), nn.PReLU(128),
            nn.Conv2d(128, 128, 7, groups=128, bias=False), nn.BatchNorm2d(128),
        )  # fmt: skip
        self.fc, self.bn = nn.Linear(128, 64, bias=False), nn.BatchNorm1d(64)

    def embed(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.bn(self.fc(x.view(x.shape[0], -1)))

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.embed(x1), self.embed(x2)
        return F.normalize(a), F.cosine_similarity(a, b)


class PFNLayer(nn.Module):
    """A linear layer, its norm over channels that are last, the largest of each pillar beside every point."""

    def __init__(self, inp: int, oup: int, last: bool) -> None:
        super().__init__()
        self.last_vfe, oup = last, oup if last else oup // 2
        self.linear, self.norm = nn.Linear(inp, oup, bias=False), nn.BatchNorm1d(oup, eps=1e-3, momentum=0.01)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.linear(inputs)
        x = self.norm(x.permute(0, 2, 1)).permute(0, 2, 1)
        x = F.relu(x)
        x_max = torch.max(x, dim=1, keepdim=True)[0]
        if self.last_vfe:
            return x_max
        return torch.cat([x, x_max.repeat(1, inputs.shape[1], 1)], dim=2)


class PointPillars(nn.Module):
    """Lang et al. 2019: decorated points, two PFN layers, scatter by a table, a backbone of two scales, anchors' heads."""

    def __init__(self, nx: int = 32, ny: int = 32, anchors: int = 6) -> None:
        super().__init__()
        self.nx, self.ny, self.pfn = nx, ny, nn.ModuleList([PFNLayer(10, 32, False), PFNLayer(32, 32, True)])

        def block(inp: int, oup: int, s: int, n: int) -> nn.Sequential:
            layers: list[nn.Module] = [
                nn.ZeroPad2d(1),
                nn.Conv2d(inp, oup, 3, s, bias=False),
                nn.BatchNorm2d(oup),
                nn.ReLU(),
            ]
            for _ in range(n):
                layers += [nn.Conv2d(oup, oup, 3, padding=1, bias=False), nn.BatchNorm2d(oup), nn.ReLU()]
            return nn.Sequential(*layers)

        def up(inp: int, oup: int, s: int) -> nn.Sequential:
            return nn.Sequential(nn.ConvTranspose2d(inp, oup, s, s, bias=False), nn.BatchNorm2d(oup), nn.ReLU())

        self.blocks = nn.ModuleList([block(32, 32, 2, 2), block(32, 64, 2, 2)])
        self.deblocks = nn.ModuleList([up(32, 64, 1), up(64, 64, 2)])
        self.conv_cls, self.conv_box = nn.Conv2d(128, anchors, 1), nn.Conv2d(128, anchors * 7, 1)

    def forward(self, points: Tensor, num_points: Tensor, coords: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        mean = points[:, :, :3].sum(dim=1, keepdim=True) / num_points.type_as(points).view(-1, 1, 1)
        center = points[:, :, :3] - torch.cat((coords * 0.5 + 0.25, torch.zeros_like(coords[:, :1])), 1).unsqueeze(1)
        features = torch.cat([points, points[:, :, :3] - mean, center], dim=-1)
        there = torch.arange(points.shape[1]).view(1, -1) < num_points.view(-1, 1)
        features = features * there.unsqueeze(-1).type_as(features)
        for layer in self.pfn:
            features = layer(features)
        pillars = torch.cat([features.squeeze(1), torch.zeros(1, features.shape[-1])])
        x = pillars[cell].permute(1, 0).contiguous().view(1, -1, self.ny, self.nx)
        ups = []
        for block, deblock in zip(self.blocks, self.deblocks, strict=True):
            x = block(x)
            ups.append(deblock(x))
        x = torch.cat(ups, dim=1)
        return self.conv_cls(x).permute(0, 2, 3, 1).contiguous(), self.conv_box(x).permute(0, 2, 3, 1).contiguous()


def pillars(generator: Generator, most: int = 200, points: int = 16, size: int = 32) -> Sample:
    """Points of a scan in pillars of 0.5 m: x, y, z, intensity; how many; which cell; for each cell its pillar."""
    cells = torch.randperm(size * size, generator=generator)[:most]
    coords = torch.stack((cells % size, cells // size), 1).float()
    count = torch.randint(1, points + 1, (most,), generator=generator)
    xyz = torch.rand(most, points, 3, generator=generator) * torch.tensor([0.5, 0.5, 0.3])
    height = torch.rand(most, 1, 1, generator=generator) ** 4 * 3 - 1.7  # mostly ground
    xyz[..., :2] += coords[:, None] * 0.5
    xyz[..., 2:] += height
    every = torch.cat((xyz, torch.rand(most, points, 1, generator=generator) ** 3), -1)
    every = every * (torch.arange(points) < count[:, None])[..., None]
    table = torch.full((size * size,), most)
    table[cells] = torch.arange(most)
    return every, count, coords, table


class LiftSplat(nn.Module):
    """Philion and Fidler 2020: depth as a softmax, times features, summed into a map's cells by a table of the cameras."""

    def __init__(self, cameras: int = 2, depth: int = 12, c: int = 16, size: int = 16) -> None:
        super().__init__()
        self.D, self.C, self.size = depth, c, size
        self.trunk = nn.Sequential(stem(24), BasicBlock(24, 24), BasicBlock(24, 48, 2))
        self.depthnet = nn.Conv2d(48, depth + c, 1)
        rays = cameras * depth * 4 * 8
        cell = torch.randint(0, size * size, (rays,))
        self.register_buffer("splat", F.one_hot(cell, size * size).float().t().contiguous())
        self.bev = nn.Sequential(
            BasicBlock(c, 32), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(32, 32, 3, padding=1),
            nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.Conv2d(32, 1, 1),
        )  # fmt: skip

    def forward(self, imgs: Tensor) -> Tensor:
        b, n, c, h, w = imgs.shape
        x = self.depthnet(self.trunk(imgs.view(b * n, c, h, w)))
        depth = x[:, : self.D].softmax(dim=1)
        x = depth.unsqueeze(1) * x[:, self.D : (self.D + self.C)].unsqueeze(2)
        x = x.view(b, n, self.C, self.D, h // 8, w // 8).permute(0, 1, 3, 4, 5, 2)
        x = torch.matmul(self.splat, x.reshape(b, -1, self.C))
        return self.bev(x.permute(0, 2, 1).reshape(b, self.C, self.size, self.size))


class Conv2Plus1D(nn.Sequential):
    """A convolution over space, then one over time."""

    def __init__(self, inp: int, oup: int, s: int = 1) -> None:
        super().__init__(
            nn.Conv3d(inp, oup, (1, 3, 3), (1, s, s), (0, 1, 1), bias=False), nn.BatchNorm3d(oup), nn.ReLU(inplace=True),
            nn.Conv3d(oup, oup, (3, 1, 1), (s, 1, 1), (1, 0, 0), bias=False), nn.BatchNorm3d(oup),
        )  # fmt: skip


class Video(nn.Module):
    """Tran et al. 2018, R(2+1)D, thin: eight frames."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = Conv2Plus1D(3, 16, 2), nn.ReLU(inplace=True)
        self.conv1, self.conv2, self.down = Conv2Plus1D(16, 16), Conv2Plus1D(16, 32, 2), nn.Conv3d(16, 32, 1, 2)
        self.pool, self.avgpool, self.fc = nn.MaxPool3d((1, 2, 2)), nn.AdaptiveAvgPool3d((1, 1, 1)), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.stem(x)))
        x = self.relu(self.conv1(x) + x)
        x = self.relu(self.conv2(x) + self.down(x))
        return self.fc(self.avgpool(x).flatten(1))


def pair(generator: Generator) -> Sample:
    """An image and one somewhat like it."""
    first, other = picture(generator, 3, 56, 56), picture(generator, 3, 56, 56)
    return (first[None] - 0.5) / 0.25, ((0.7 * first + 0.3 * other)[None] - 0.5) / 0.25


def cameras(generator: Generator) -> Sample:
    """Images of two cameras."""
    return ((torch.stack([picture(generator, 3, 32, 64) for _ in range(2)])[None] - 0.45) / 0.225,)


def clip(generator: Generator) -> Sample:
    """Eight frames of a moving image."""
    image = picture(generator, 3, 48, 48)
    return ((torch.stack([image.roll(2 * i, -1)[:, :32, :32] for i in range(8)], 1)[None] - 0.45) / 0.225,)


NETWORKS: dict[str, Recipe] = {
    "siamese": (Siamese, pair),
    "pointpillars": (PointPillars, pillars),
    "lift_splat": (LiftSplat, cameras),
    "video_r2plus1d": (Video, clip),
}
