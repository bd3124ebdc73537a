"""LiDAR detectors as static graphs: encoders, scatter by gather, backbone and neck, centre heads.

Every network takes its inputs ready made by the pipeline (pillars or voxels and the tables that say where they lie), so
that it is one torch.export graph of convolutions, linears, pooling and gathers, which integer runtimes compute.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = {"heatmap": 3, "offset": 2, "height": 1, "size": 3, "rotation": 2, "direction": 1}


def gather_rows(rows: Tensor, table: Tensor) -> Tensor:
    """Rows [N, C] picked by `table` (int, any shape, flattened) → [table.numel(), C]; index N picks a row of zeros."""
    return F.pad(rows, (0, 0, 0, 1)).index_select(0, table.flatten())


def scatter(rows: Tensor, table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rows [P, C] and table [B·H·W] (cell → row, P where empty) → BEV image [B, C, H, W]."""
    return gather_rows(rows, table).view(-1, *grid, rows.shape[1]).permute(0, 3, 1, 2)


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3, folded: bool = False) -> nn.Sequential:
    """Convolution that keeps the size (or divides it by `stride`), BatchNorm, ReLU; `folded`: a bias in BatchNorm's place."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=folded)
    norm = [] if folded else [nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.05)]
    return nn.Sequential(layer, *norm, nn.ReLU())


def up(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Transposed convolution that multiplies the size by `stride`, BatchNorm, ReLU."""
    layer = nn.ConvTranspose2d(inputs, outputs, stride, stride, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.05), nn.ReLU())


class PillarEncoder(nn.Module):
    """Per point a linear layer, then the largest answer in each pillar (Lang et al. 2019, PointPillars, section 2.1).

    Written as a 1×1 convolution and a max pooling over the points, which every integer runtime has.
    """

    def __init__(self, features: int, outputs: int, folded: bool = False) -> None:
        super().__init__()
        self.linear = conv(features, outputs, kernel=1, folded=folded)

    def forward(self, pillars: Tensor) -> Tensor:
        """[1, features, P, points] → [P, outputs]."""
        answers: Tensor = self.linear(pillars)
        largest = F.max_pool2d(answers, (1, pillars.shape[3]))
        return largest.permute(0, 2, 3, 1).reshape(pillars.shape[2], -1)


class SparseConv3d(nn.Module):
    """Sparse 3D convolution, submanifold or strided, as one gather and one linear, with BatchNorm and ReLU.

    The table names for each active output site its 27 input rows; a missing neighbour is a row of zeros. One linear
    over all taps keeps the sum in one accumulator, so that an integer runtime requantises once. (Graham et al. 2018,
    Submanifold Sparse Convolutional Networks; edgeq.lidar.voxels builds the tables.)
    """

    def __init__(self, inputs: int, outputs: int, taps: int = 27) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs * taps, outputs, bias=False)
        self.norm = nn.BatchNorm1d(outputs, eps=1e-3, momentum=0.05)

    def forward(self, rows: Tensor, table: Tensor) -> Tensor:
        """Rows [N_in, C_in] and table [N_out, taps] (N_in where there is none) → [N_out, C_out]."""
        taken = gather_rows(rows, table).reshape(table.shape[0], -1)
        return F.relu(self.norm(self.linear(taken)))


class SparseEncoder(nn.Module):
    """Three levels of sparse 3D convolution; each level halves the grid, then has one submanifold convolution."""

    def __init__(self, features: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        a, b, c = widths
        self.level1 = nn.ModuleList([SparseConv3d(features, a), SparseConv3d(a, a)])
        self.level2 = nn.ModuleList([SparseConv3d(a, b), SparseConv3d(b, b)])
        self.level3 = nn.ModuleList([SparseConv3d(b, c), SparseConv3d(c, c)])

    def forward(
        self, rows: Tensor, same1: Tensor, down2: Tensor, same2: Tensor, down3: Tensor, same3: Tensor
    ) -> Tensor:
        """Voxel features [N1, features] and each level's tables → rows of the third level [N3, widths[2]]."""
        rows = self.level1[1](self.level1[0](rows, same1), same1)
        rows = self.level2[1](self.level2[0](rows, down2), same2)
        out: Tensor = self.level3[1](self.level3[0](rows, down3), same3)
        return out


class Stage(nn.Sequential):
    """`depth` 3×3 convolutions, the first with `stride`."""

    def __init__(self, inputs: int, outputs: int, depth: int, stride: int) -> None:
        super().__init__(conv(inputs, outputs, stride), *(conv(outputs, outputs) for _ in range(depth - 1)))


class CentreHead(nn.Module):
    """Heatmap and box answers per cell (Yin et al. 2021, CenterPoint, section 4)."""

    def __init__(self, inputs: int, width: int, outputs: dict[str, int]) -> None:
        super().__init__()
        self.shared = conv(inputs, width)
        self.seen, self.shaped = conv(width, width), conv(width, width)
        self.heads = nn.ModuleDict({name: nn.Conv2d(width, count, 1) for name, count in outputs.items()})
        nn.init.constant_(self.heads["heatmap"].bias, -4.6)  # type: ignore[arg-type] # a Parameter; 1 % where nothing is

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """[B, C, H, W] → by head [B, outputs, H, W]; the heatmap before its sigmoid."""
        shared = self.shared(features)
        seen, shaped = self.seen(shared), self.shaped(shared)
        return {name: head(seen if name == "heatmap" else shaped) for name, head in self.heads.items()}


class CenterPointPillar(nn.Module):
    """Pillars, three stages, a neck at stride 4, centre heads; 1.1 M parameters."""

    def __init__(self, features: int = 10, grid: tuple[int, int] = (256, 256)) -> None:
        super().__init__()
        self.grid = grid
        self.encoder = PillarEncoder(features, 32)
        self.stage1, self.stage2, self.stage3 = Stage(32, 32, 3, 2), Stage(32, 64, 4, 2), Stage(64, 128, 5, 2)
        self.down1, self.same2, self.up3 = conv(32, 64, 2), conv(64, 64, kernel=1), up(128, 64, 2)
        self.head = CentreHead(192, 64, HEADS)

    def forward(self, pillars: Tensor, table: Tensor) -> dict[str, Tensor]:
        """Pillars [1, features, P, points], table [B·H·W] (cell → pillar, P where empty) → heads [B, n, H/4, W/4]."""
        return self.dense(scatter(self.encoder(pillars), table, self.grid))

    def dense(self, bev: Tensor) -> dict[str, Tensor]:
        """BEV [B, 32, H, W] → heads."""
        x1 = self.stage1(bev)
        x2 = self.stage2(x1)
        x3 = self.stage3(x2)
        heads: dict[str, Tensor] = self.head(torch.cat([self.down1(x1), self.same2(x2), self.up3(x3)], 1))
        return heads


class CenterPointVoxel(nn.Module):
    """Voxels, sparse 3D encoder, two stages, a neck at stride 4, centre heads; 1.3 M parameters."""

    def __init__(self, features: int = 8, bev: tuple[int, int, int] = (64, 64, 5)) -> None:
        super().__init__()
        self.bev = bev
        self.encoder = SparseEncoder(features, (16, 32, 64))
        self.flat = conv(64 * bev[2], 64, kernel=1)
        self.stage2, self.stage3 = Stage(64, 64, 4, 1), Stage(64, 128, 5, 2)
        self.same2, self.up3 = conv(64, 64, kernel=1), up(128, 64, 2)
        self.head = CentreHead(128, 64, HEADS)

    def forward(
        self,
        voxels: Tensor,
        same1: Tensor,
        down2: Tensor,
        same2: Tensor,
        down3: Tensor,
        same3: Tensor,
        table: Tensor,
    ) -> dict[str, Tensor]:
        """Voxels [N1, features], neighbour tables [N, 27], table [B·H·W·D] (cell → row, N3 where empty) → heads."""
        rows = self.encoder(voxels, same1, down2, same2, down3, same3)
        height, width, depth = self.bev
        grid = gather_rows(rows, table).view(-1, height, width, depth * rows.shape[1])
        x2 = self.stage2(self.flat(grid.permute(0, 3, 1, 2)))
        x3 = self.stage3(x2)
        heads: dict[str, Tensor] = self.head(torch.cat([self.same2(x2), self.up3(x3)], 1))
        return heads


class PointPillars(nn.Module):
    """Pillars, a strided backbone with two upsampling steps, anchor heads at stride 4; BatchNorm folded, 2.25 M parameters.

    The shape of the public KITTI weights that examples/pointpillars_kitti.py reads.
    """

    def __init__(self, features: int = 10, grid: tuple[int, int] = (496, 432), anchors: int = 6) -> None:
        super().__init__()

        def plain(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
            return conv(inputs, outputs, stride, folded=True)

        def double(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.ConvTranspose2d(inputs, outputs, 4, 2, 1), nn.ReLU())

        self.grid = grid
        self.encoder = PillarEncoder(features, 64, folded=True)
        self.h0, self.h1, self.h2, self.h3 = plain(64, 16), plain(16, 16), plain(16, 32, 2), plain(32, 64)
        self.b1a, self.b1b = plain(64, 64), plain(64, 64, 2)
        self.b2a, self.b2b = plain(64, 128), plain(128, 128, 2)
        self.b3a, self.b3b = plain(128, 256), plain(256, 256, 2)
        self.up1a, self.up1c = double(256, 128), plain(256, 128)
        self.up2a, self.up2c = double(128, 64), plain(128, 64)
        self.cls, self.box, self.dir = (nn.Conv2d(64, anchors * n, 1) for n in (3, 7, 2))

    def forward(self, pillars: Tensor, table: Tensor) -> dict[str, Tensor]:
        """Pillars [1, features, P, points], table [H·W] → cls [1, 18, H/4, W/4], box [1, 42, …], dir [1, 12, …]."""
        return self.dense(scatter(self.encoder(pillars), table, self.grid))

    def dense(self, bev: Tensor) -> dict[str, Tensor]:
        """BEV [1, 64, H, W] → heads."""
        x1 = self.b1b(self.b1a(self.h3(self.h2(self.h1(self.h0(bev))))))
        x2 = self.b2b(self.b2a(x1))
        x3 = self.b3b(self.b3a(x2))
        y2 = self.up1c(torch.cat([self.up1a(x3), x2], 1))
        y1 = self.up2c(torch.cat([self.up2a(y2), x1], 1))
        return {"cls": self.cls(y1), "box": self.box(y1), "dir": self.dir(y1)}
