"""Classifiers of other minds: ShuffleNetV2, GhostNet, RegNet, split attention (ResNeSt), ConvNeXt."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.material import Recipe, images


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Channels of `groups` groups taken in turns."""
    batchsize, num_channels, height, width = x.size()
    x = x.view(batchsize, groups, num_channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batchsize, num_channels, height, width)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass, or both halves are halved in size."""

    def __init__(self, inp: int, oup: int, stride: int) -> None:
        super().__init__()
        self.stride, mid = stride, oup // 2
        if stride > 1:
            self.branch1 = nn.Sequential(
                nn.Conv2d(inp, inp, 3, stride, 1, groups=inp, bias=False), nn.BatchNorm2d(inp),
                nn.Conv2d(inp, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU(inplace=True),
            )  # fmt: skip
        else:
            self.branch1 = nn.Sequential()
        self.branch2 = nn.Sequential(
            nn.Conv2d(inp if stride > 1 else mid, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU(inplace=True),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid),
            nn.Conv2d(mid, mid, 1, bias=False), nn.BatchNorm2d(mid), nn.ReLU(inplace=True),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            x1, x2 = x.chunk(2, dim=1)
            out = torch.cat((x1, self.branch2(x2)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return channel_shuffle(out, 2)


class ShuffleNetV2(nn.Module):
    """Ma et al. 2018, ×0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inp = 24
        for name, repeats, oup in (("stage2", 4, 48), ("stage3", 8, 96), ("stage4", 4, 192)):
            units = [ShuffleUnit(inp, oup, 2), *[ShuffleUnit(oup, oup, 1) for _ in range(repeats - 1)]]
            setattr(self, name, nn.Sequential(*units))
            inp = oup
        self.conv5 = nn.Sequential(nn.Conv2d(inp, 1024, 1, bias=False), nn.BatchNorm2d(1024), nn.ReLU(inplace=True))
        self.fc = nn.Linear(1024, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.stage4(self.stage3(self.stage2(x)))
        x = self.conv5(x).mean([2, 3])
        return self.fc(x)


class GhostModule(nn.Module):
    """Half of the channels by a 1×1 convolution, the other half by a cheap depthwise one of those."""

    def __init__(self, inp: int, oup: int, relu: bool = True) -> None:
        super().__init__()
        self.oup, init = oup, (oup + 1) // 2
        self.primary_conv = nn.Sequential(
            nn.Conv2d(inp, init, 1, bias=False),
            nn.BatchNorm2d(init),
            nn.ReLU(inplace=True) if relu else nn.Sequential(),
        )
        self.cheap_operation = nn.Sequential(
            nn.Conv2d(init, init, 3, 1, 1, groups=init, bias=False),
            nn.BatchNorm2d(init),
            nn.ReLU(inplace=True) if relu else nn.Sequential(),
        )

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary_conv(x)
        out = torch.cat([x1, self.cheap_operation(x1)], dim=1)
        return out[:, : self.oup, :, :]


class GhostGate(nn.Module):
    """Squeeze and excite with a hard sigmoid as a clip: relu6(x + 3) / 6."""

    def __init__(self, chs: int) -> None:
        super().__init__()
        self.conv_reduce, self.conv_expand = nn.Conv2d(chs, chs // 4, 1), nn.Conv2d(chs // 4, chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv_expand(F.relu(self.conv_reduce(F.adaptive_avg_pool2d(x, (1, 1)))))
        return x * (F.relu6(gate + 3.0) / 6.0)


class GhostBottleneck(nn.Module):
    """Two ghost modules, with a gate and a depthwise convolution between them where asked for."""

    def __init__(self, inp: int, mid: int, oup: int, k: int, s: int, se: bool) -> None:
        super().__init__()
        self.stride, self.ghost1 = s, GhostModule(inp, mid)
        if s > 1:
            self.conv_dw = nn.Conv2d(mid, mid, k, s, (k - 1) // 2, groups=mid, bias=False)
            self.bn_dw = nn.BatchNorm2d(mid)
        self.se = GhostGate(mid) if se else None
        self.ghost2 = GhostModule(mid, oup, relu=False)
        self.shortcut = nn.Sequential()
        if s > 1 or inp != oup:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inp, inp, k, s, (k - 1) // 2, groups=inp, bias=False), nn.BatchNorm2d(inp),
                nn.Conv2d(inp, oup, 1, bias=False), nn.BatchNorm2d(oup),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        x = self.ghost1(x)
        if self.stride > 1:
            x = self.bn_dw(self.conv_dw(x))
        if self.se is not None:
            x = self.se(x)
        x = self.ghost2(x)
        x += self.shortcut(residual)
        return x


class GhostNet(nn.Module):
    """Han et al. 2020, ×0.5."""

    def __init__(self) -> None:
        super().__init__()
        rows = (
            (3, 8, 8, 0, 1), (3, 24, 12, 0, 2), (3, 36, 12, 0, 1), (5, 36, 20, 1, 2), (5, 60, 20, 1, 1), (3, 120, 40, 0, 2),
            (3, 100, 40, 0, 1), (3, 92, 40, 0, 1), (3, 240, 56, 1, 1), (3, 336, 56, 1, 1), (5, 336, 80, 1, 2),
            (5, 480, 80, 0, 1), (5, 480, 80, 1, 1),
        )  # fmt: skip
        self.conv_stem, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        blocks, c = [], 8
        for k, mid, oup, se, s in rows:
            blocks.append(GhostBottleneck(c, mid, oup, k, s, bool(se)))
            c = oup
        self.blocks = nn.Sequential(*blocks)
        self.conv, self.bn2 = nn.Conv2d(c, 480, 1, bias=False), nn.BatchNorm2d(480)
        self.conv_head, self.classifier = nn.Conv2d(480, 1280, 1), nn.Linear(1280, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv_stem(x)))
        x = F.relu(self.bn2(self.conv(self.blocks(x))))
        x = F.avg_pool2d(x, x.shape[2:])
        x = F.relu(self.conv_head(x)).flatten(1)
        return self.classifier(x)


class RegNetBlock(nn.Module):
    """RegNetY's block: 1×1, grouped 3×3, gate, 1×1."""

    def __init__(self, inp: int, oup: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(inp, oup, 1, bias=False), nn.BatchNorm2d(oup), nn.ReLU(True))
        self.b = nn.Sequential(
            nn.Conv2d(oup, oup, 3, stride, 1, groups=oup // group_width, bias=False), nn.BatchNorm2d(oup), nn.ReLU(True)
        )
        self.pool, squeezed = nn.AdaptiveAvgPool2d((1, 1)), inp // 4
        self.se = nn.Sequential(nn.Conv2d(oup, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, oup, 1), nn.Sigmoid())
        self.c = nn.Sequential(nn.Conv2d(oup, oup, 1, bias=False), nn.BatchNorm2d(oup))
        self.proj = None
        if stride != 1 or inp != oup:
            self.proj = nn.Sequential(nn.Conv2d(inp, oup, 1, stride, bias=False), nn.BatchNorm2d(oup))

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        y = self.c(y.mul(self.se(self.pool(y))))
        return F.relu(y + (x if self.proj is None else self.proj(x)))


class RegNetY(nn.Module):
    """Radosavovic et al. 2020, 200 MF."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        stages, c = [], 32
        for depth, width in ((1, 24), (1, 56), (4, 152), (7, 368)):
            for i in range(depth):
                stages.append(RegNetBlock(c, width, 2 if i == 0 else 1, 8))
                c = width
        self.trunk, self.head = nn.Sequential(*stages), nn.Linear(c, 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(self.stem(x)).mean(dim=(-2, -1)))


class SplitAttention(nn.Module):
    """A grouped convolution of two splits, summed by weights that are a softmax over the splits."""

    def __init__(self, channels: int, radix: int = 2) -> None:
        super().__init__()
        self.radix, inter = radix, max(channels * radix // 4, 32)
        self.conv = nn.Conv2d(channels, channels * radix, 3, 1, 1, groups=radix, bias=False)
        self.bn0, self.relu = nn.BatchNorm2d(channels * radix), nn.ReLU(inplace=True)
        self.fc1, self.bn1 = nn.Conv2d(channels, inter, 1), nn.BatchNorm2d(inter)
        self.fc2 = nn.Conv2d(inter, channels * radix, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn0(self.conv(x)))
        batch, rchannel = x.shape[:2]
        splits = torch.split(x, rchannel // self.radix, dim=1)
        gap = F.adaptive_avg_pool2d(sum(splits), 1)
        atten = self.fc2(self.relu(self.bn1(self.fc1(gap))))
        atten = F.softmax(atten.view(batch, 1, self.radix, -1).transpose(1, 2), dim=1).reshape(batch, -1)
        attens = torch.split(atten.view(batch, -1, 1, 1), rchannel // self.radix, dim=1)
        return sum([att * split for att, split in zip(attens, splits, strict=True)])  # type: ignore[return-value] # tensors


class ResNeStBlock(nn.Module):
    """A bottleneck about split attention, halved by an average pool."""

    def __init__(self, inp: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inp, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = SplitAttention(width)
        self.avd = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = nn.Conv2d(width, width * 4, 1, bias=False), nn.BatchNorm2d(width * 4)
        self.downsample = nn.Sequential(
            nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
            nn.Conv2d(inp, width * 4, 1, bias=False),
            nn.BatchNorm2d(width * 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.avd(self.conv2(out))))
        return F.relu(out + self.downsample(x))


class ResNeSt(nn.Module):
    """Zhang et al. 2020, one block a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
            nn.Conv2d(16, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        self.layers = nn.Sequential(ResNeStBlock(32, 32, 1), ResNeStBlock(128, 64, 2), ResNeStBlock(256, 96, 2))
        self.fc = nn.Linear(384, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.stem(x))
        return self.fc(nn.AdaptiveAvgPool2d(1)(x).view(x.size(0), -1))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, norm and two linear layers with channels last, layer scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(0.3 * torch.rand(dim))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.dwconv(x).permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        x = (self.gamma * x).permute(0, 3, 1, 2)
        return shortcut + x


class LayerNorm2d(nn.Module):
    """A norm over channels that come first, written out."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXt(nn.Module):
    """Liu et al. 2022, atto."""

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(3, 40, 4, 4), LayerNorm2d(40)]
        for i, (depth, dim) in enumerate(((2, 40), (2, 80), (6, 160), (2, 320))):
            if i:
                stages += [LayerNorm2d(dim // 2), nn.Conv2d(dim // 2, dim, 2, 2)]
            stages += [ConvNeXtBlock(dim) for _ in range(depth)]
        self.stages = nn.Sequential(*stages)
        self.norm, self.head = nn.LayerNorm(320, eps=1e-6), nn.Linear(320, 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stages(x).mean([-2, -1])))


NETWORKS: dict[str, Recipe] = {
    "shufflenet_v2": (ShuffleNetV2, images(128)),
    "ghostnet": (GhostNet, images(96)),
    "regnet_y": (RegNetY, images(96)),
    "resnest": (ResNeSt, images(96)),
    "convnext": (ConvNeXt, images(96)),
}
