"""Detectors: YOLO of three generations at nano size, SSD, RetinaNet, CenterNet."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.material import Recipe, images
from zoo.mobile import ConvBNReLU, InvertedResidual


class Conv(nn.Module):
    """Convolution, norm, SiLU; act: another activation, None for none."""

    default_act = nn.SiLU(inplace=True)

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn, self.act = nn.BatchNorm2d(c2, eps=0.001, momentum=0.03), self.default_act if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two convolutions, with a shortcut where asked for."""

    def __init__(self, c: int, shortcut: bool, first: int = 1) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(c, c, first), Conv(c, c, 3), shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C3(nn.Module):
    """YOLOv5's stage: bottlenecks beside a 1×1 convolution."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True) -> None:
        super().__init__()
        c = c2 // 2
        self.cv1, self.cv2, self.cv3 = Conv(c1, c), Conv(c1, c), Conv(2 * c, c2)
        self.m = nn.Sequential(*(Bottleneck(c, shortcut) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class CIB(nn.Module):
    """YOLOv10's inverted block: depthwise, 1×1, depthwise, 1×1, depthwise."""

    def __init__(self, c: int, shortcut: bool) -> None:
        super().__init__()
        self.add = shortcut
        self.cv1 = nn.Sequential(
            Conv(c, c, 3, g=c), Conv(c, 2 * c), Conv(2 * c, 2 * c, 3, g=2 * c), Conv(2 * c, c), Conv(c, c, 3, g=c)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv1(x) if self.add else self.cv1(x)


class C2f(nn.Module):
    """YOLOv8's stage: two halves, and what each bottleneck makes of the last one, all concatenated."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = False, cib: bool = False) -> None:
        super().__init__()
        self.c = c2 // 2
        self.cv1, self.cv2 = Conv(c1, 2 * self.c), Conv((2 + n) * self.c, c2)
        self.m = nn.ModuleList(CIB(self.c, shortcut) if cib else Bottleneck(self.c, shortcut, 3) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    """Three max pools in a row, concatenated."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.m = Conv(c, c // 2), Conv(c * 2, c), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


class YOLOv5(nn.Module):
    """YOLOv5n with its anchors' decoding: boxes in pixels and scores in one tensor."""

    stride, anchors = (8, 16, 32), ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326))

    def __init__(self, nc: int = 20) -> None:
        super().__init__()
        self.na, self.no = 3, nc + 5
        self.p3 = nn.Sequential(
            nn.Conv2d(3, 16, 6, 2, 2, bias=False), nn.BatchNorm2d(16), nn.SiLU(), Conv(16, 32, 3, 2), C3(32, 32),
            Conv(32, 64, 3, 2), C3(64, 64, 2),
        )  # fmt: skip
        self.p4 = nn.Sequential(Conv(64, 128, 3, 2), C3(128, 128, 3))
        self.p5 = nn.Sequential(Conv(128, 256, 3, 2), C3(256, 256), SPPF(256))
        self.lat5, self.up, self.td4 = Conv(256, 128), nn.Upsample(None, 2, "nearest"), C3(256, 128, 1, False)
        self.lat4, self.td3 = Conv(128, 64), C3(128, 64, 1, False)
        self.down3, self.bu4 = Conv(64, 64, 3, 2), C3(128, 128, 1, False)
        self.down4, self.bu5 = Conv(128, 128, 3, 2), C3(256, 256, 1, False)
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in (64, 128, 256))
        for head in self.m:
            nn.init.constant_(head.bias, -2.0)
        self.register_buffer("anchor", torch.tensor(self.anchors).float().view(3, 1, 3, 1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(x)
        p4 = self.p4(p3)
        p5 = self.lat5(self.p5(p4))
        t4 = self.lat4(self.td4(torch.cat([self.up(p5), p4], 1)))
        t3 = self.td3(torch.cat([self.up(t4), p3], 1))
        b4 = self.bu4(torch.cat([self.down3(t3), t4], 1))
        b5 = self.bu5(torch.cat([self.down4(b4), p5], 1))
        z = []
        for i, feature in enumerate((t3, b4, b5)):
            y = self.m[i](feature)
            bs, _, ny, nx = y.shape
            y = y.view(bs, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
            yv, xv = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
            grid = torch.stack((xv, yv), 2).expand(1, self.na, ny, nx, 2) - 0.5
            xy, wh, conf = y.sigmoid().split((2, 2, self.no - 4), 4)
            xy = (xy * 2 + grid) * self.stride[i]
            wh = (wh * 2) ** 2 * self.anchor[i]
            z.append(torch.cat((xy, wh, conf), 4).view(bs, self.na * nx * ny, self.no))
        return torch.cat(z, 1)


def make_anchors(feats: list[Tensor], strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Centres of all cells, and their strides."""
    points, stride = [], []
    for feat, s in zip(feats, strides, strict=True):
        h, w = feat.shape[2:]
        sy, sx = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        points.append(torch.stack((sx, sy), -1).view(-1, 2))
        stride.append(torch.full((h * w, 1), float(s)))
    return torch.cat(points).transpose(0, 1), torch.cat(stride).transpose(0, 1)


class DFL(nn.Module):
    """The mean of a distribution over distances, as a 1×1 convolution with the distances for weights."""

    def __init__(self, c1: int = 16) -> None:
        super().__init__()
        self.conv, self.c1 = nn.Conv2d(c1, 1, 1, bias=False).requires_grad_(False), c1

    def settle(self) -> None:
        self.conv.weight.data[:] = torch.arange(self.c1, dtype=torch.float).view(1, self.c1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.c1, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    """The heads of YOLOv8; light: those of YOLOv10, with depthwise class branches."""

    def __init__(self, nc: int, ch: tuple[int, ...], light: bool = False) -> None:
        super().__init__()
        self.nc, self.reg_max, self.stride, c2, c3 = nc, 16, (8, 16, 32), 64, max(ch[0], nc)
        self.cv2 = nn.ModuleList(nn.Sequential(Conv(x, c2, 3), Conv(c2, c2, 3), nn.Conv2d(c2, 64, 1)) for x in ch)

        def classes(x: int) -> list[nn.Module]:
            if not light:
                return [Conv(x, c3, 3), Conv(c3, c3, 3)]
            return [nn.Sequential(Conv(a, a, 3, g=a), Conv(a, c3)) for a in (x, c3)]

        self.cv3 = nn.ModuleList(nn.Sequential(*classes(x), nn.Conv2d(c3, nc, 1)) for x in ch)
        self.dfl = DFL(self.reg_max)
        for boxes, scores in zip(self.cv2, self.cv3, strict=True):
            nn.init.constant_(boxes[-1].bias, 1.0)  # type: ignore[arg-type,index,union-attr] # Sequentials of a convolution
            nn.init.constant_(scores[-1].bias, -4.0)  # type: ignore[arg-type,index,union-attr] # the same

    def forward(self, x: list[Tensor]) -> Tensor:
        for i in range(3):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        x_cat = torch.cat([xi.view(x[0].shape[0], 64 + self.nc, -1) for xi in x], 2)
        anchors, strides = make_anchors(x, self.stride)
        box, cls = x_cat.split((64, self.nc), 1)
        lt, rb = self.dfl(box).chunk(2, 1)
        x1y1, x2y2 = anchors.unsqueeze(0) - lt, anchors.unsqueeze(0) + rb
        dbox = torch.cat(((x1y1 + x2y2) / 2, x2y2 - x1y1), 1) * strides
        return torch.cat((dbox, cls.sigmoid()), 1)


class YOLOv8(nn.Module):
    """YOLOv8n with its decoding."""

    def __init__(self, nc: int = 20) -> None:
        super().__init__()
        self.p3 = nn.Sequential(
            Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), C2f(32, 32, 1, True), Conv(32, 64, 3, 2), C2f(64, 64, 2, True)
        )
        self.p4 = nn.Sequential(Conv(64, 128, 3, 2), C2f(128, 128, 2, True))
        self.p5 = nn.Sequential(Conv(128, 256, 3, 2), C2f(256, 256, 1, True), SPPF(256))
        self.up, self.td4, self.td3 = nn.Upsample(scale_factor=2), C2f(384, 128), C2f(192, 64)
        self.down3, self.bu4, self.down4, self.bu5 = (
            Conv(64, 64, 3, 2),
            C2f(192, 128),
            Conv(128, 128, 3, 2),
            C2f(384, 256),
        )
        self.detect = Detect(nc, (64, 128, 256))

    def forward(self, x: Tensor) -> Tensor:
        p3 = self.p3(x)
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        t4 = self.td4(torch.cat([self.up(p5), p4], 1))
        t3 = self.td3(torch.cat([self.up(t4), p3], 1))
        b4 = self.bu4(torch.cat([self.down3(t3), t4], 1))
        b5 = self.bu5(torch.cat([self.down4(b4), p5], 1))
        return self.detect([t3, b4, b5])


class SCDown(nn.Module):
    """Channels by a 1×1 convolution, size by a depthwise one."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(c1, c2), Conv(c2, c2, 3, 2, g=c2, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv2(self.cv1(x))


class PSA(nn.Module):
    """Partial self-attention: one half of the channels attends, with a depthwise convolution for position."""

    def __init__(self, c: int, heads: int = 2) -> None:
        super().__init__()
        self.c, self.heads = c // 2, heads
        self.head_dim = self.c // heads
        self.key_dim = self.head_dim // 2
        self.cv1, self.cv2 = Conv(c, c), Conv(c, c)
        self.qkv = Conv(self.c, self.c + 2 * self.key_dim * heads, act=False)
        self.proj, self.pe = Conv(self.c, self.c, act=False), Conv(self.c, self.c, 3, g=self.c, act=False)
        self.ffn = nn.Sequential(Conv(self.c, self.c * 2), Conv(self.c * 2, self.c, act=False))

    def attention(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attn = ((q.transpose(-2, -1) @ k) * self.key_dim**-0.5).softmax(dim=-1)
        y = (v @ attn.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w))
        return self.proj(y)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        b = b + self.attention(b)
        b = b + self.ffn(b)
        return self.cv2(torch.cat((a, b), 1))


class YOLOv10(nn.Module):
    """YOLOv10n: spatial downsampling apart, inverted blocks, partial attention, one-to-one heads, best class of each box."""

    def __init__(self, nc: int = 20) -> None:
        super().__init__()
        self.p3 = nn.Sequential(
            Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), C2f(32, 32, 1, True), Conv(32, 64, 3, 2), C2f(64, 64, 2, True)
        )
        self.p4 = nn.Sequential(SCDown(64, 128), C2f(128, 128, 2, True))
        self.p5 = nn.Sequential(SCDown(128, 256), C2f(256, 256, 1, True), SPPF(256), PSA(256))
        self.td4, self.td3, self.down3, self.bu4 = C2f(384, 128), C2f(192, 64), Conv(64, 64, 3, 2), C2f(192, 128)
        self.down4, self.bu5 = SCDown(128, 128), C2f(384, 256, 1, True, cib=True)
        self.detect = Detect(nc, (64, 128, 256), light=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p3 = self.p3(x)
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        t4 = self.td4(torch.cat([F.interpolate(p5, scale_factor=2.0, mode="nearest"), p4], 1))
        t3 = self.td3(torch.cat([F.interpolate(t4, scale_factor=2.0, mode="nearest"), p3], 1))
        b4 = self.bu4(torch.cat([self.down3(t3), t4], 1))
        y = self.detect([t3, b4, self.bu5(torch.cat([self.down4(b4), p5], 1))])
        boxes, scores = y.permute(0, 2, 1).split((4, y.shape[1] - 4), dim=-1)
        xy, wh = boxes.chunk(2, -1)
        return torch.cat((xy - wh / 2, xy + wh / 2), -1), scores.amax(dim=-1)


class SSDLite(nn.Module):
    """SSD's heads on an inverted residual backbone, boxes decoded from their priors, softmax over classes."""

    def __init__(self, nc: int = 21, na: int = 6) -> None:
        super().__init__()
        self.nc = nc
        ir = InvertedResidual
        self.c4 = nn.Sequential(
            ConvBNReLU(3, 32, s=2), ir(32, 16, 1, 1), ir(16, 24, 2, 6), ir(24, 24, 1, 6), ir(24, 32, 2, 6), ir(32, 32, 1, 6),
            ir(32, 64, 2, 6), ir(64, 96, 1, 6),
        )  # fmt: skip
        self.c5 = nn.Sequential(ir(96, 160, 2, 6), ir(160, 160, 1, 6), ConvBNReLU(160, 320, k=1))
        self.extra = nn.Sequential(ConvBNReLU(320, 128, k=1), ConvBNReLU(128, 256, s=2))
        self.loc, self.conf = nn.ModuleList(), nn.ModuleList()
        for c in (96, 320, 256):
            for heads, outputs in ((self.loc, na * 4), (self.conf, na * nc)):
                heads.append(nn.Sequential(ConvBNReLU(c, c, groups=c), nn.Conv2d(c, outputs, 1)))
        cells = 10 * 10 + 5 * 5 + 3 * 3
        self.priors = nn.Parameter(torch.rand(cells * na, 4) * 0.5 + 0.25, requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sources = [self.c4(x)]
        sources.append(self.c5(sources[-1]))
        sources.append(self.extra(sources[-1]))
        loc, conf = [], []
        for s, l, c in zip(sources, self.loc, self.conf, strict=True):  # noqa: E741 # as SSD's code has named them since 2016
            loc.append(l(s).permute(0, 2, 3, 1).contiguous())
            conf.append(c(s).permute(0, 2, 3, 1).contiguous())
        locations = torch.cat([o.view(o.size(0), -1) for o in loc], 1).view(x.size(0), -1, 4)
        scores = torch.cat([o.view(o.size(0), -1) for o in conf], 1).view(x.size(0), -1, self.nc)
        centers = self.priors[:, :2] + locations[..., :2] * 0.1 * self.priors[:, 2:]
        sizes = self.priors[:, 2:] * torch.exp(locations[..., 2:] * 0.2)
        return torch.cat((centers - sizes / 2, centers + sizes / 2), -1), F.softmax(scores, dim=-1)


class BasicBlock(nn.Module):
    """ResNet's block."""

    def __init__(self, inp: int, oup: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inp, oup, 3, stride, 1, bias=False), nn.BatchNorm2d(oup)
        self.conv2, self.bn2 = nn.Conv2d(oup, oup, 3, 1, 1, bias=False), nn.BatchNorm2d(oup)
        self.downsample = None
        if stride != 1 or inp != oup:
            self.downsample = nn.Sequential(nn.Conv2d(inp, oup, 1, stride, bias=False), nn.BatchNorm2d(oup))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += identity
        return F.relu(out, inplace=True)


def stem(c: int) -> nn.Sequential:
    """ResNet's first layers."""
    return nn.Sequential(nn.Conv2d(3, c, 7, 2, 3, bias=False), nn.BatchNorm2d(c), nn.ReLU(True), nn.MaxPool2d(3, 2, 1))


class RetinaNet(nn.Module):
    """A feature pyramid on a thin ResNet-18; the same heads on every level."""

    def __init__(self, nc: int = 20, na: int = 9, c: int = 64) -> None:
        super().__init__()
        self.nc, self.stem, self.layer1 = nc, stem(32), nn.Sequential(BasicBlock(32, 32), BasicBlock(32, 32))
        self.layer2 = nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64))
        self.layer3 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128))
        self.layer4 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256))
        self.inner = nn.ModuleList(nn.Conv2d(x, c, 1) for x in (64, 128, 256))
        self.outer = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for _ in range(3))
        self.p6 = nn.Conv2d(256, c, 3, 2, 1)

        def head(outputs: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for _ in range(2):
                layers += [nn.Conv2d(c, c, 3, padding=1), nn.ReLU()]
            return nn.Sequential(*layers, nn.Conv2d(c, outputs, 3, padding=1))

        self.cls_head, self.reg_head = head(na * nc), head(na * 4)
        nn.init.constant_(self.cls_head[-1].bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[arg-type] # a convolution's

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        c3 = self.layer2(self.layer1(self.stem(x)))
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        inner = [conv(c) for conv, c in zip(self.inner, (c3, c4, c5), strict=True)]
        for i in (1, 0):
            inner[i] = inner[i] + F.interpolate(inner[i + 1], size=inner[i].shape[-2:], mode="nearest")
        features = [conv(f) for conv, f in zip(self.outer, inner, strict=True)] + [self.p6(c5)]
        logits, boxes = [], []
        for f in features:
            n = f.shape[0]
            logits.append(self.cls_head(f).permute(0, 2, 3, 1).reshape(n, -1, self.nc))
            boxes.append(self.reg_head(f).permute(0, 2, 3, 1).reshape(n, -1, 4))
        return {"cls_logits": torch.cat(logits, dim=1), "bbox_regression": torch.cat(boxes, dim=1)}


class CenterNet(nn.Module):
    """A thin ResNet, three transposed convolutions, heads; peaks are what a 3×3 max pool leaves as it was."""

    def __init__(self, nc: int = 10) -> None:
        super().__init__()
        self.backbone = nn.Sequential(stem(32), BasicBlock(32, 32), BasicBlock(32, 64, 2), BasicBlock(64, 128, 2))
        ups: list[nn.Module] = []
        for a, b in ((128, 64), (64, 32)):
            ups += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
        self.deconv = nn.Sequential(*ups)
        for name, outputs in (("hm", nc), ("wh", 2), ("reg", 2)):
            setattr(self, name, nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, outputs, 1)))
        nn.init.constant_(self.hm[-1].bias, -2.19)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.deconv(self.backbone(x))
        hm = torch.clamp(self.hm(x).sigmoid_(), min=1e-4, max=1 - 1e-4)
        return hm, F.max_pool2d(hm, (3, 3), stride=1, padding=1), self.wh(x), self.reg(x)


NETWORKS: dict[str, Recipe] = {
    "yolo_v5n": (YOLOv5, images(160, raw=True)),
    "yolo_v8n": (YOLOv8, images(160, raw=True)),
    "yolo_v10n": (YOLOv10, images(160, raw=True)),
    "ssdlite": (SSDLite, images(160)),
    "retinanet": (RetinaNet, images(128)),
    "centernet": (CenterNet, images(128)),
}
