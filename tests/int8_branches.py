"""Operators side by side as one QDQ network, and their sums in NumPy int64, written here; shares no code with the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

qd = torch.ops.quantized_decomposed
Ints = npt.NDArray[np.int64]
Numbers = tuple[float, int]  # scale, zero point


def quantize(x: Tensor, numbers: Numbers) -> Tensor:
    """The int8 codes of x."""
    return qd.quantize_per_tensor(x, *numbers, -128, 127, torch.int8)


def dequantize(x: Tensor, numbers: Numbers) -> Tensor:
    """What int8 codes stand for."""
    return qd.dequantize_per_tensor(x, *numbers, -128, 127, torch.int8)


def f32(value: float) -> float:
    """The nearest float32."""
    return float(np.float32(value))


class Net(nn.Module):
    """Operators side by side on one int8 input; every output is dequantized."""

    def __init__(self, numbers: Numbers, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.numbers, self.branches = numbers, nn.ModuleList(branches)
        for branch in branches:
            if "steps" in branch._buffers:
                branch.register_buffer("bias", (branch.steps.double() * branch.scales.double() * numbers[0]).float())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q = quantize(x, self.numbers)
        return tuple(dequantize(quantize(b(q, self.numbers), b.out), b.out) for b in self.branches)


class Branch(nn.Module):
    """One operator: `run` in torch on dequantized inputs, `oracle` in NumPy on x − zero point."""

    def __init__(self, out: Numbers, run: Callable[..., Tensor], weight: Tensor | None = None, axis: int = 0) -> None:
        super().__init__()
        self.out, self.run, self.axis = out, run, axis
        if weight is not None:
            generator = torch.Generator().manual_seed(weight.numel())
            channels = weight.shape[axis]
            self.register_buffer("weight", weight)
            spread = 0.5 + torch.rand(channels, generator=generator)
            self.register_buffer("scales", spread * 0.01)
            self.register_buffer("zeros", torch.zeros(channels, dtype=torch.int64))
            self.register_buffer("steps", torch.randint(-3000, 3000, (channels,), generator=generator))

    def forward(self, q: Tensor, numbers: Numbers) -> Tensor:
        if "weight" not in self._buffers:
            return self.run(lambda: dequantize(q, numbers))
        real = qd.dequantize_per_channel(self.weight, self.scales, self.zeros, self.axis, -127, 127, torch.int8)
        return self.run(dequantize(q, numbers), real, self.bias)


def ints(shape: Sequence[int], seed: int, low: int = -127) -> Tensor:
    """Int8 values of a seed, from `low` on."""
    return torch.randint(low, 128, tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)


def finish(scaled: npt.NDArray[np.float32], out: Numbers, low: float = -np.inf, high: float = np.inf) -> Ints:
    """Round half to even, add the zero point, clip to int8 and to real bounds."""
    bounds = [np.clip(np.floor(b / out[0] + 0.5) + out[1] if np.isfinite(b) else b, -128, 127) for b in (low, high)]
    return np.clip(np.rint(scaled).astype(np.int64) + out[1], int(bounds[0]), int(bounds[1]))


def weighted(total: Ints, branch: Branch, numbers: Numbers, channel: int) -> npt.NDArray[np.float32]:
    """(Σ + bias) as float32, times s_in·s_w/s_out rounded to float32 after each step."""
    shape = [1] * total.ndim
    shape[channel] = -1
    ratio = np.float32(numbers[0]) * branch.scales.numpy() / np.float32(branch.out[0])
    return (total + branch.steps.numpy().reshape(shape)).astype(np.float32) * ratio.reshape(shape)


def conv_sums(x: Ints, w: Ints, stride: int, pad: int, dilation: int, groups: int) -> Ints:
    """Σ x·w, tap by tap; x [N, C, H, W] without its zero point."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    reach = [(k - 1) * dilation + 1 for k in w.shape[2:]]
    rows, columns = ((n - r) // stride + 1 for n, r in zip(x.shape[2:], reach, strict=True))
    total = np.zeros((x.shape[0], w.shape[0], rows, columns), np.int64)
    each, outs = w.shape[1], w.shape[0] // groups
    for g in range(groups):
        for i in range(w.shape[2]):
            for j in range(w.shape[3]):
                top, left = i * dilation, j * dilation
                part = x[:, g * each : (g + 1) * each, top::stride, left::stride][:, :, :rows, :columns]
                taps = w[g * outs : (g + 1) * outs, :, i, j]
                total[:, g * outs : (g + 1) * outs] += np.einsum("nchw,oc->nohw", part, taps)
    return total


def transposed_sums(x: Ints, w: Ints, stride: int, pad: int, extra: int, groups: int) -> Ints:
    """The same scattered: w [C, O/groups, kh, kw]; extra: of rows and columns at the end."""
    (n, cin, h, wide), (_, outs, kh, kw) = x.shape, w.shape
    full = np.zeros((n, outs * groups, (h - 1) * stride + kh + extra, (wide - 1) * stride + kw + extra), np.int64)
    each = cin // groups
    for g in range(groups):
        for i in range(kh):
            for j in range(kw):
                part = np.einsum(
                    "nchw,co->nohw", x[:, g * each : (g + 1) * each], w[g * each : (g + 1) * each, :, i, j]
                )
                target = full[:, g * outs : (g + 1) * outs, i : i + h * stride : stride, j : j + wide * stride : stride]
                target += part
    return full[:, :, pad : full.shape[2] - pad, pad : full.shape[3] - pad]


def image(shape: Sequence[int], seed: int, numbers: Numbers) -> tuple[Tensor, Ints]:
    """A float input on its grid, and the same as integers − zero point."""
    q = ints(shape, seed, low=-128)
    return (q.float() - numbers[1]) * np.float32(numbers[0]), q.numpy().astype(np.int64) - numbers[1]


def convolutions(size: tuple[int, int], channels: int, outs: int, kernel: int, stride: int, dilation: int, zero: int):
    """A network of six kinds of convolution and its oracles, on [2, channels, *size]."""
    numbers, pad, seed = (f32(0.03), zero), (kernel - 1) * dilation // 2, channels * 100 + outs
    out = (f32(0.5 * channels * kernel), 5)
    x, centred = image((2, channels, *size), seed, numbers)
    dense, point = ints((outs, channels, kernel, kernel), seed + 1), ints((outs, channels, 1, 1), seed + 2)
    deep, grouped = (
        ints((channels, 1, kernel, kernel), seed + 3),
        ints((outs * 2, channels // 2, kernel, kernel), seed + 4),
    )
    back, apart = ints((channels, outs, kernel, kernel), seed + 5), ints((channels, outs, stride, stride), seed + 6)
    branches = [
        Branch(out, lambda x, w, b: F.relu(F.conv2d(x, w, b, stride, pad, dilation)), dense),
        Branch(out, lambda x, w, b: F.conv2d(x, w, b), point),
        Branch(out, lambda x, w, b: F.relu6(F.conv2d(x, w, b, stride, pad, dilation, channels)), deep),
        Branch(out, lambda x, w, b: F.conv2d(x, w, b, stride, pad, dilation, 2), grouped),
        Branch(out, lambda x, w, b: F.conv_transpose2d(x, w, b, stride, kernel // 2, stride - 1), back, axis=1),
        Branch(out, lambda x, w, b: F.conv_transpose2d(x, w, b, stride), apart, axis=1),
    ]
    sums = [
        conv_sums(centred, dense.numpy().astype(np.int64), stride, pad, dilation, 1),
        conv_sums(centred, point.numpy().astype(np.int64), 1, 0, 1, 1),
        conv_sums(centred, deep.numpy().astype(np.int64), stride, pad, dilation, channels),
        conv_sums(centred, grouped.numpy().astype(np.int64), stride, pad, dilation, 2),
        transposed_sums(centred, back.numpy().astype(np.int64), stride, kernel // 2, stride - 1, 1),
        transposed_sums(centred, apart.numpy().astype(np.int64), stride, 0, 0, 1),
    ]
    bounds = [(0, np.inf), (-np.inf, np.inf), (0, 6), *[(-np.inf, np.inf)] * 3]
    wanted = [finish(weighted(s, b, numbers, 1), out, *c) for s, b, c in zip(sums, branches, bounds, strict=True)]
    return Net(numbers, branches), x, wanted
