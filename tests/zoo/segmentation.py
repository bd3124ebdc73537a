"""Networks that answer a map: U-Net with both upsamplings, DeepLabV3, SegFormer, super-resolution, style transfer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.detection import BasicBlock, stem
from zoo.material import Recipe, images


class DoubleConv(nn.Sequential):
    """Two convolutions, each with its norm and ReLU."""

    def __init__(self, inp: int, oup: int, mid: int | None = None) -> None:
        mid = mid or oup
        super().__init__(
            nn.Conv2d(inp, mid, 3, padding=1, bias=False), nn.BatchNorm2d(mid), nn.ReLU(inplace=True),
            nn.Conv2d(mid, oup, 3, padding=1, bias=False), nn.BatchNorm2d(oup), nn.ReLU(inplace=True),
        )  # fmt: skip


class Up(nn.Module):
    """Twice the size, padded to the skip's, concatenated with it."""

    def __init__(self, inp: int, oup: int, bilinear: bool) -> None:
        super().__init__()
        if bilinear:
            self.up: nn.Module = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.conv = DoubleConv(inp, oup, inp // 2)
        else:
            self.up, self.conv = nn.ConvTranspose2d(inp, inp // 2, 2, 2), DoubleConv(inp, oup)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        x1 = self.up(x1)
        dy, dx = x2.size()[2] - x1.size()[2], x2.size()[3] - x1.size()[3]
        x1 = F.pad(x1, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([x2, x1], dim=1))


class UNet(nn.Module):
    """Ronneberger et al. 2015 with norms, a quarter of the channels."""

    def __init__(self, bilinear: bool, n_classes: int = 5) -> None:
        super().__init__()
        factor = 2 if bilinear else 1
        self.inc, self.outc = DoubleConv(3, 16), nn.Conv2d(16, n_classes, 1)
        widths = ((16, 32), (32, 64), (64, 128), (128, 256 // factor))
        self.downs = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), DoubleConv(a, b)) for a, b in widths)
        outs = (128 // factor, 64 // factor, 32 // factor, 16)
        self.ups = nn.ModuleList(Up(a, b, bilinear) for a, b in zip((256, 128, 64, 32), outs, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.inc(x)]
        for down in self.downs:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for up in self.ups:
            x = up(x, skips.pop())
        return self.outc(x)


class ASPP(nn.Module):
    """Dilated convolutions side by side, and one of the whole map's mean."""

    def __init__(self, inp: int, oup: int) -> None:
        super().__init__()

        def branch(*layers: nn.Module) -> nn.Sequential:
            return nn.Sequential(*layers, nn.BatchNorm2d(oup), nn.ReLU())

        rates = (12, 24, 36)
        self.convs = nn.ModuleList([branch(nn.Conv2d(inp, oup, 1, bias=False))])
        self.convs.extend(branch(nn.Conv2d(inp, oup, 3, padding=r, dilation=r, bias=False)) for r in rates)
        self.pooling = branch(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inp, oup, 1, bias=False))
        self.project = nn.Sequential(branch(nn.Conv2d(5 * oup, oup, 1, bias=False)), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        res = [conv(x) for conv in self.convs]
        res.append(F.interpolate(self.pooling(x), size=x.shape[-2:], mode="bilinear", align_corners=False))
        return self.project(torch.cat(res, dim=1))


class DeepLabV3(nn.Module):
    """Chen et al. 2017 on a thin ResNet, back to the image's size by bilinear interpolation."""

    def __init__(self, n_classes: int = 21) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            stem(32), BasicBlock(32, 32), BasicBlock(32, 64, 2), BasicBlock(64, 128, 2), BasicBlock(128, 128)
        )
        self.classifier = nn.Sequential(
            ASPP(128, 64), nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, n_classes, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.classifier(self.backbone(x))
        return {"out": F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)}


class EfficientAttention(nn.Module):
    """Attention whose keys and values are of a smaller map."""

    def __init__(self, dim: int, heads: int, reduce: int) -> None:
        super().__init__()
        self.heads, self.q, self.kv, self.proj = (
            heads,
            nn.Linear(dim, dim),
            nn.Linear(dim, 2 * dim),
            nn.Linear(dim, dim),
        )
        self.sr = nn.Conv2d(dim, dim, reduce, reduce) if reduce > 1 else None
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, self.heads, c // self.heads).permute(0, 2, 1, 3)
        if self.sr is not None:
            x = self.norm(self.sr(x.permute(0, 2, 1).reshape(b, c, h, w)).reshape(b, c, -1).permute(0, 2, 1))
        kv = self.kv(x).reshape(b, -1, 2, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        attn = ((q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(b, n, c))


class MixFFN(nn.Module):
    """Two linear layers about a depthwise convolution."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = self.fc1(x)
        b, _, c = x.shape
        x = self.dwconv(x.transpose(1, 2).view(b, c, h, w)).flatten(2).transpose(1, 2)
        return self.fc2(F.gelu(x))


class SegFormer(nn.Module):
    """Xie et al. 2021: four stages of two blocks, B0's widths, an all-linear decoder."""

    def __init__(self, n_classes: int = 19, embed: int = 64) -> None:
        super().__init__()
        dims, heads, reduce = (32, 64, 160, 256), (1, 2, 5, 8), (8, 4, 2, 1)
        self.embeds, self.norms, self.blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        c = 3
        for i, dim in enumerate(dims):
            self.embeds.append(nn.Conv2d(c, dim, 7 if i == 0 else 3, 4 if i == 0 else 2, 3 if i == 0 else 1))
            self.norms.append(nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)]))
            parts = [
                nn.LayerNorm(dim),
                EfficientAttention(dim, heads[i], reduce[i]),
                nn.LayerNorm(dim),
                MixFFN(dim, 4 * dim),
            ]
            self.blocks.append(nn.ModuleList(parts))
            c = dim
        self.linears = nn.ModuleList(nn.Linear(dim, embed) for dim in dims)
        self.fuse, self.bn = nn.Conv2d(4 * embed, embed, 1, bias=False), nn.BatchNorm2d(embed)
        self.pred = nn.Conv2d(embed, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for embed, (before, after), (n1, attn, n2, mlp) in zip(self.embeds, self.norms, self.blocks, strict=True):  # type: ignore[misc] # module lists
            x = embed(x)
            b, c, h, w = x.shape
            x = before(x.flatten(2).transpose(1, 2))
            x = x + attn(n1(x), h, w)
            x = after(x + mlp(n2(x), h, w))
            x = x.reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()
            outs.append(x)
        size, up = outs[0].shape[2:], []
        for linear, c in zip(self.linears, outs, strict=True):
            y = linear(c.flatten(2).transpose(1, 2)).permute(0, 2, 1).reshape(c.shape[0], -1, c.shape[2], c.shape[3])
            up.append(F.interpolate(y, size=size, mode="bilinear", align_corners=False))
        return self.pred(F.relu(self.bn(self.fuse(torch.cat(up[::-1], dim=1)))))


class SuperResolution(nn.Module):
    """Residual blocks without norms, two pixel shuffles, the bicubic image added."""

    def __init__(self, c: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, c, 3, 1, 1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 3, 1, 1), nn.ReLU(True), nn.Conv2d(c, c, 3, 1, 1)) for _ in range(blocks)
        )
        self.upsampler = nn.Sequential(
            nn.Conv2d(c, 4 * c, 3, 1, 1), nn.PixelShuffle(2), nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(c, 4 * c, 3, 1, 1), nn.PixelShuffle(2), nn.LeakyReLU(0.1, inplace=True),
        )  # fmt: skip
        self.tail = nn.Conv2d(c, 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = feature = self.head(x - 0.45)
        for block in self.body:
            feature = feature + block(feature) * 0.2
        y = self.tail(self.upsampler(feature + first))
        return (F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False) + 0.1 * y).clamp(0, 1)


class ConvLayer(nn.Module):
    """Reflection padding, then a convolution; upsample: nearest, before both."""

    def __init__(self, inp: int, oup: int, k: int, s: int, upsample: int | None = None) -> None:
        super().__init__()
        self.upsample, self.reflection_pad = upsample, nn.ReflectionPad2d(k // 2)
        self.conv2d = nn.Conv2d(inp, oup, k, s)

    def forward(self, x: Tensor) -> Tensor:
        if self.upsample:
            x = F.interpolate(x, mode="nearest", scale_factor=self.upsample)
        return self.conv2d(self.reflection_pad(x))


class StyleResidual(nn.Module):
    """Two padded convolutions with instance norm, and a shortcut."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.in1 = ConvLayer(c, c, 3, 1), nn.InstanceNorm2d(c, affine=True)
        self.conv2, self.in2 = ConvLayer(c, c, 3, 1), nn.InstanceNorm2d(c, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.in2(self.conv2(torch.relu(self.in1(self.conv1(x))))) + x


class StyleTransfer(nn.Module):
    """Johnson et al. 2016 with instance norm, half of the channels, two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvLayer(3, 16, 9, 1), ConvLayer(16, 32, 3, 2), ConvLayer(32, 64, 3, 2)])
        self.res = nn.Sequential(StyleResidual(64), StyleResidual(64))
        self.deconvs = nn.ModuleList([ConvLayer(64, 32, 3, 1, 2), ConvLayer(32, 16, 3, 1, 2)])
        self.ins = nn.ModuleList(nn.InstanceNorm2d(c, affine=True) for c in (16, 32, 64, 32, 16))
        self.last = ConvLayer(16, 3, 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv, norm in zip(self.convs, self.ins[:3], strict=True):  # type: ignore[arg-type] # a list of modules
            y = F.relu(norm(conv(y)))
        y = self.res(y)
        for conv, norm in zip(self.deconvs, self.ins[3:], strict=True):  # type: ignore[arg-type] # a list of modules
            y = F.relu(norm(conv(y)))
        return torch.tanh(self.last(y)) * 150 + 255.0 / 2


NETWORKS: dict[str, Recipe] = {
    "unet_transposed": (lambda: UNet(bilinear=False), images(96)),
    "unet_bilinear": (lambda: UNet(bilinear=True), images(96)),
    "deeplab_v3": (DeepLabV3, images(128)),
    "segformer": (SegFormer, images(128)),
    "super_resolution": (SuperResolution, images(32, raw=True)),
    "style_transfer": (StyleTransfer, images(64, raw=True)),
}
