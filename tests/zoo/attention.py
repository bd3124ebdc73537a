"""Transformers for images and words: ViT, Swin, MobileViT, a small BERT."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from zoo.material import Recipe, Sample, images


class Attention(nn.Module):
    """Attention with one projection for q, k and v, as timm writes it."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        x = attn.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    """Norm first, attention, norm, two linear layers."""

    def __init__(self, dim: int, heads: int, ratio: int = 4, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), Attention(dim, heads), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim * ratio), act(), nn.Dropout(0.1), nn.Linear(dim * ratio, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy et al. 2021, tiny's width, four of its blocks, with a class token."""

    def __init__(self, dim: int = 192, depth: int = 4, size: int = 96, patch: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.3)
        self.pos_embed = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, dim) * 0.2)
        self.blocks, self.norm = nn.Sequential(*(Block(dim, 3) for _ in range(depth))), nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


class WindowAttention(nn.Module):
    """Attention within windows, with a bias for each relative position and a mask where windows wrap around."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.5)
        coords = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", relative[..., 0] * (2 * window - 1) + relative[..., 1])
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = attn + self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            attn = attn.view(b // windows, windows, self.heads, n, n) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.heads, n, n)
        x = (F.softmax(attn, dim=-1) @ v).transpose(1, 2).reshape(b, n, c)
        return self.proj(x)


def window_partition(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] → [windows, window, window, C]."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window, window, c)


def window_reverse(windows: Tensor, window: int, h: int, w: int) -> Tensor:
    """Back again."""
    b = windows.shape[0] // (h * w // window // window)
    x = windows.view(b, h // window, w // window, window, window, -1)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)


class SwinBlock(nn.Module):
    """Liu et al. 2021: windows, moved by half of one in every other block."""

    def __init__(self, dim: int, size: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.size, self.window, self.shift = size, window, shift
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), WindowAttention(dim, window, heads), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        mask = None
        if shift:
            img = torch.zeros(1, size, size, 1)
            slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
            for i, rows in enumerate(slices):
                for j, columns in enumerate(slices):
                    img[:, rows, columns, :] = i * 3 + j
            parts = window_partition(img, window).view(-1, window * window)
            apart = parts.unsqueeze(1) - parts.unsqueeze(2)
            mask = apart.masked_fill(apart != 0, -100.0).masked_fill(apart == 0, 0.0)
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        shortcut = x
        x = self.norm1(x).view(b, self.size, self.size, c)
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = window_partition(x, self.window).view(-1, self.window**2, c)
        windows = self.attn(windows, self.attn_mask).view(-1, self.window, self.window, c)
        x = window_reverse(windows, self.window, self.size, self.size)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x.view(b, n, c)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Four neighbours' channels side by side, halved by a linear layer."""

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.size, self.norm, self.reduction = size, nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        x = x.view(b, self.size, self.size, c)
        x = torch.cat([x[:, 0::2, 0::2, :], x[:, 1::2, 0::2, :], x[:, 0::2, 1::2, :], x[:, 1::2, 1::2, :]], -1)
        return self.reduction(self.norm(x.view(b, -1, 4 * c)))


class Swin(nn.Module):
    """Two stages of Swin with windows of 4, half of tiny's width."""

    def __init__(self, dim: int = 48) -> None:
        super().__init__()
        self.embed, self.norm0 = nn.Conv2d(3, dim, 4, 4), nn.LayerNorm(dim)
        self.stage1 = nn.Sequential(SwinBlock(dim, 16, 3, 4, 0), SwinBlock(dim, 16, 3, 4, 2))
        self.merge = PatchMerging(dim, 16)
        self.stage2 = nn.Sequential(SwinBlock(2 * dim, 8, 6, 4, 0), SwinBlock(2 * dim, 8, 6, 4, 2))
        self.norm, self.head = nn.LayerNorm(2 * dim), nn.Linear(2 * dim, 100)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.embed(x).flatten(2).transpose(1, 2))
        x = self.norm(self.stage2(self.merge(self.stage1(x))))
        x = F.adaptive_avg_pool1d(x.transpose(1, 2), 1)
        return self.head(torch.flatten(x, 1))


def conv_bn(inp: int, oup: int, k: int = 3, s: int = 1, g: int = 1) -> nn.Sequential:
    """Convolution, norm, SiLU."""
    return nn.Sequential(nn.Conv2d(inp, oup, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(oup), nn.SiLU())


class MV2(nn.Module):
    """MobileNetV2's block with SiLU."""

    def __init__(self, inp: int, oup: int, s: int) -> None:
        super().__init__()
        self.use, mid = s == 1 and inp == oup, inp * 2
        self.conv = nn.Sequential(
            conv_bn(inp, mid, 1), conv_bn(mid, mid, 3, s, mid), nn.Conv2d(mid, oup, 1, bias=False), nn.BatchNorm2d(oup)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use else self.conv(x)


class MobileViTBlock(nn.Module):
    """Mehta and Rastegari 2022: pixels of one place in each patch attend to one another."""

    def __init__(self, c: int, dim: int, depth: int, patch: int = 2) -> None:
        super().__init__()
        self.p = patch
        self.local = nn.Sequential(conv_bn(c, c), nn.Conv2d(c, dim, 1, bias=False))
        self.blocks = nn.Sequential(*(Block(dim, 4, 2, nn.SiLU) for _ in range(depth)), nn.LayerNorm(dim))
        self.proj, self.fusion = conv_bn(dim, c, 1), conv_bn(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.local(x)
        b, d, h, w = y.shape
        p, nh, nw = self.p, h // self.p, w // self.p
        y = y.reshape(b * d * nh, p, nw, p).transpose(1, 2).reshape(b, d, nh * nw, p * p)
        y = y.transpose(1, 3).reshape(b * p * p, nh * nw, d)
        y = self.blocks(y)
        y = y.contiguous().view(b, p * p, nh * nw, d).transpose(1, 3).reshape(b * d * nh, nw, p, p)
        y = y.transpose(1, 2).reshape(b, d, h, w)
        return self.fusion(torch.cat((x, self.proj(y)), 1))


class MobileViT(nn.Module):
    """MobileViT-XXS."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 16, 3, 2), MV2(16, 16, 1), MV2(16, 24, 2), MV2(24, 24, 1), MV2(24, 24, 1))
        self.stage = nn.Sequential(
            MV2(24, 48, 2), MobileViTBlock(48, 64, 2), MV2(48, 64, 2), MobileViTBlock(64, 80, 2), conv_bn(64, 320, 1)
        )
        self.fc = nn.Linear(320, 100, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage(self.stem(x))
        return self.fc(F.avg_pool2d(x, x.shape[-1]).view(-1, 320))


class BertLayer(nn.Module):
    """Norm last, separate projections, torch's own attention with a mask."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dense, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=1e-12)
        self.up, self.down, self.norm2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim), nn.LayerNorm(dim, eps=1e-12)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norm(x + self.dense(y.permute(0, 2, 1, 3).contiguous().view(x.shape)))
        h = self.up(x)
        h = h * 0.5 * (1.0 + torch.erf(h / math.sqrt(2.0)))
        return self.norm2(x + self.down(h))


class Bert(nn.Module):
    """A sentence encoder: words and positions, two layers, the mean over the words that are there, of length 1."""

    def __init__(self, words: int = 1000, dim: int = 128) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, dim), nn.Embedding(64, dim)
        self.norm, self.layers = nn.LayerNorm(dim, eps=1e-12), nn.ModuleList(BertLayer(dim, 4) for _ in range(2))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        ids = torch.arange(input_ids.size(1)).unsqueeze(0)
        x = self.norm(self.words(input_ids) + self.positions(ids))
        extended = (1.0 - attention_mask[:, None, None, :].float()) * -10000.0
        for layer in self.layers:
            x = layer(x, extended)
        weight = attention_mask.unsqueeze(-1).float()
        pooled = (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return F.normalize(pooled, p=2, dim=1)


def sentence(generator: Generator) -> Sample:
    """Ids of 32 words, the frequent ones more often, and which of them are there."""
    length = int(torch.randint(8, 33, (1,), generator=generator))
    ids = (1000 ** torch.rand(1, 32, generator=generator)).long().clamp(max=999)
    there = (torch.arange(32) < length).long()[None]
    return ids * there, there


NETWORKS: dict[str, Recipe] = {
    "vit_tiny": (ViT, images(96)),
    "swin": (Swin, images(64)),
    "mobilevit": (MobileViT, images(128)),
    "bert": (Bert, sentence),
}
