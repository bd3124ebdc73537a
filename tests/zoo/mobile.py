"""Classifiers for phones: MobileNet V2 and V3, EfficientNet B0 and V2."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.material import Recipe, images


def _make_divisible(v: float, divisor: int = 8) -> int:
    new_v = max(divisor, int(v + divisor / 2) // divisor * divisor)
    return new_v + divisor if new_v < 0.9 * v else new_v


class ConvBNReLU(nn.Sequential):
    """A convolution, its norm, a clip at 6."""

    def __init__(self, inp: int, oup: int, k: int = 3, s: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inp, oup, k, s, (k - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(oup),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """MobileNetV2's block."""

    def __init__(self, inp: int, oup: int, stride: int, expand_ratio: int) -> None:
        super().__init__()
        hidden_dim = round(inp * expand_ratio)
        self.use_res_connect = stride == 1 and inp == oup
        layers: list[nn.Module] = [] if expand_ratio == 1 else [ConvBNReLU(inp, hidden_dim, k=1)]
        layers.extend(
            [
                ConvBNReLU(hidden_dim, hidden_dim, s=stride, groups=hidden_dim),
                nn.Conv2d(hidden_dim, oup, 1, 1, 0, bias=False),
                nn.BatchNorm2d(oup),
            ]
        )
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018, width 1.0."""

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__()
        c = 32
        features: list[nn.Module] = [ConvBNReLU(3, c, s=2)]
        for t, oup, n, s in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for i in range(n):
                features.append(InvertedResidual(c, oup, s if i == 0 else 1, t))
                c = oup
        features.append(ConvBNReLU(c, 1280, k=1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        x = torch.flatten(x, 1)
        return self.classifier(x)


class SqueezeExcite(nn.Module):
    """A gate a channel, of the channel's mean, as V3 has it: pooled, two 1×1 convolutions, hard sigmoid."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeeze, 1), nn.Conv2d(squeeze, channels, 1)
        self.activation, self.scale_activation = nn.ReLU(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.avgpool(x)
        scale = self.activation(self.fc1(scale))
        return self.scale_activation(self.fc2(scale)) * x


class WrittenOutSqueezeExcite(nn.Module):
    """The same as older code writes it: linear layers on a view, relu6(x + 3) / 6."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, squeeze), nn.ReLU(inplace=True), nn.Linear(squeeze, channels))

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        y = F.relu6(self.fc(y) + 3.0) / 6.0
        return x * y.view(b, c, 1, 1)


class WrittenOutHSwish(nn.Module):
    """x · relu6(x + 3) / 6, as it was written before torch had it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * F.relu6(x + 3.0) / 6.0


class V3Block(nn.Module):
    """MobileNetV3's block."""

    def __init__(self, inp: int, exp: int, oup: int, k: int, s: int, act: nn.Module, se: Any) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)
        layers: list[nn.Module] = []
        if exp != inp:
            layers += [nn.Sequential(nn.Conv2d(inp, exp, 1, bias=False), norm(exp), act)]
        layers += [nn.Sequential(nn.Conv2d(exp, exp, k, s, (k - 1) // 2, groups=exp, bias=False), norm(exp), act)]
        if se is not None:
            layers += [se(exp, _make_divisible(exp // 4))]
        layers += [nn.Sequential(nn.Conv2d(exp, oup, 1, bias=False), norm(oup))]
        self.block, self.residual = nn.Sequential(*layers), s == 1 and inp == oup

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        if self.residual:
            result += x
        return result


# kernel, expanded, out, squeeze, hardswish, stride
SMALL = (
    (3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1),
    (5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2), (5, 576, 96, 1, 1, 1),
    (5, 576, 96, 1, 1, 1),
)  # fmt: skip
LARGE = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1),
)  # fmt: skip


class MobileNetV3(nn.Module):
    """Howard et al. 2019; hswish and se: the modules, or what was written before there were modules."""

    def __init__(self, rows: tuple[tuple[int, ...], ...], last: int, hswish: Callable[[], nn.Module], se: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16, eps=0.001), hswish())
        blocks, c = [], 16
        for k, exp, oup, squeeze, hs, s in rows:
            act = hswish() if hs else nn.ReLU(inplace=True)
            blocks.append(V3Block(c, exp, oup, k, s, act, se if squeeze else None))
            c = oup
        self.blocks = nn.Sequential(*blocks)
        self.conv = nn.Sequential(nn.Conv2d(c, c * 6, 1, bias=False), nn.BatchNorm2d(c * 6, eps=0.001), hswish())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(c * 6, last), hswish(), nn.Dropout(0.2), nn.Linear(last, 100))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.blocks(self.stem(x)))
        x = self.avgpool(x)
        x = x.view(x.size(0), -1)
        return self.classifier(x)


class Swish(nn.Module):
    """x · sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class MBConv(nn.Module):
    """EfficientNet's block; fused: one 3×3 convolution for the first two."""

    def __init__(self, inp: int, oup: int, k: int, s: int, expand: int, se: float, fused: bool = False) -> None:
        super().__init__()
        mid = inp * expand
        self._has_expand, self._fused, self._skip = expand != 1, fused, s == 1 and inp == oup
        self._swish = Swish()
        if fused:
            self._expand_conv = nn.Conv2d(inp, mid if expand > 1 else oup, k, s, k // 2, bias=False)
            self._bn0 = nn.BatchNorm2d(self._expand_conv.out_channels, eps=1e-3)
        else:
            if self._has_expand:
                self._expand_conv = nn.Conv2d(inp, mid, 1, bias=False)
                self._bn0 = nn.BatchNorm2d(mid, eps=1e-3)
            self._depthwise_conv = nn.Conv2d(mid, mid, k, s, k // 2, groups=mid, bias=False)
            self._bn1 = nn.BatchNorm2d(mid, eps=1e-3)
        self._has_se = se > 0
        if self._has_se:
            squeezed = max(1, int(inp * se))
            self._se_reduce, self._se_expand = nn.Conv2d(mid, squeezed, 1), nn.Conv2d(squeezed, mid, 1)
        if not (fused and expand == 1):
            self._project_conv = nn.Conv2d(mid, oup, 1, bias=False)
            self._bn2 = nn.BatchNorm2d(oup, eps=1e-3)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        if self._has_expand or self._fused:
            x = self._swish(self._bn0(self._expand_conv(x)))
        if not self._fused:
            x = self._swish(self._bn1(self._depthwise_conv(x)))
        if self._has_se:
            x_squeezed = F.adaptive_avg_pool2d(x, 1)
            x_squeezed = self._se_expand(self._swish(self._se_reduce(x_squeezed)))
            x = torch.sigmoid(x_squeezed) * x
        if hasattr(self, "_project_conv"):
            x = self._bn2(self._project_conv(x))
        if self._skip:
            x = x + inputs
        return x


# repeats, kernel, stride, expansion, out, squeeze, fused
B0 = (
    (1, 3, 1, 1, 16, 0.25, False), (2, 3, 2, 6, 24, 0.25, False), (2, 5, 2, 6, 40, 0.25, False),
    (3, 3, 2, 6, 80, 0.25, False), (3, 5, 1, 6, 112, 0.25, False), (4, 5, 2, 6, 192, 0.25, False),
    (1, 3, 1, 6, 320, 0.25, False),
)  # fmt: skip
V2_B0 = (
    (1, 3, 1, 1, 16, 0.0, True), (2, 3, 2, 4, 32, 0.0, True), (2, 3, 2, 4, 48, 0.0, True),
    (3, 3, 2, 4, 96, 0.25, False), (5, 3, 1, 6, 112, 0.25, False), (8, 3, 2, 6, 192, 0.25, False),
)  # fmt: skip


class EfficientNet(nn.Module):
    """Tan and Le 2019 (B0), 2021 (V2-B0)."""

    def __init__(self, rows: tuple[tuple[Any, ...], ...]) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32, eps=1e-3)
        self._blocks, c = nn.ModuleList(), 32
        for repeats, k, s, expand, oup, se, fused in rows:
            for i in range(repeats):
                self._blocks.append(MBConv(c, oup, k, s if i == 0 else 1, expand, se, fused))
                c = oup
        self._conv_head, self._bn1 = nn.Conv2d(c, 1280, 1, bias=False), nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 100)
        nn.init.uniform_(self._fc.weight, -1.0 / math.sqrt(100), 1.0 / math.sqrt(100))

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self._bn0(self._conv_stem(x)), inplace=True)
        for block in self._blocks:
            x = block(x)
        x = F.silu(self._bn1(self._conv_head(x)))
        x = x.mean([2, 3])
        return self._fc(F.dropout(x, 0.2, self.training))


NETWORKS: dict[str, Recipe] = {
    "mobilenet_v2": (MobileNetV2, images(96)),
    "mobilenet_v3_small": (lambda: MobileNetV3(SMALL, 1024, nn.Hardswish, SqueezeExcite), images(128)),
    "mobilenet_v3_large": (lambda: MobileNetV3(LARGE, 1280, WrittenOutHSwish, WrittenOutSqueezeExcite), images(96)),
    "efficientnet_b0": (lambda: EfficientNet(B0), images(96)),
    "efficientnet_v2_b0": (lambda: EfficientNet(V2_B0), images(96)),
}
