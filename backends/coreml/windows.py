"""MIL operators that slide a window: convolution and pooling, in torch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeq.backends.coreml.parameters import Parameters, data, flag, ints
from edgeq.spec import EdgeqError


def same_padding(sizes: list[int], kernel: list[int], stride: list[int], lower: bool) -> list[int]:
    """Before and after each axis so that the output has ceil(size / stride); the odd one goes after, or before."""
    padding = []
    for size, extent, step in zip(sizes, kernel, stride, strict=True):
        total = max(0, (math.ceil(size / step) - 1) * step + extent - size)
        small = total // 2
        padding += [total - small, small] if lower else [small, total - small]
    return padding


def padding_of(a: Parameters, sizes: list[int], kernel: list[int], stride: list[int]) -> list[int]:
    """Padding before and after each spatial axis, from pad_type and pad."""
    pad_type = a.get("pad_type", "valid")
    if pad_type == "custom":
        return ints(a["pad"])
    if pad_type in ("same", "same_lower"):
        return same_padding(sizes, kernel, stride, pad_type == "same_lower")
    return [0] * (2 * len(sizes))


def torch_pad(pairs: list[int]) -> list[int]:
    """MIL lists (before, after) from the first axis on, torch from the last."""
    return [amount for axis in range(len(pairs) - 2, -1, -2) for amount in pairs[axis : axis + 2]]


def conv(a: Parameters) -> Tensor:
    """Convolution over 1 to 3 spatial axes."""
    x, w = data(a), a["weight"]
    axes = x.dim() - 2
    stride, dilation = ints(a.get("strides")) or [1] * axes, ints(a.get("dilations")) or [1] * axes
    extent = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
    pairs = padding_of(a, list(x.shape[2:]), extent, stride)
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    padding = pairs[::2]
    if padding != pairs[1::2]:
        x, padding = F.pad(x, torch_pad(pairs)), [0] * axes
    groups = int(a["groups"]) if "groups" in a else 1
    return function(x, w, a.get("bias"), stride, padding, dilation, groups)


def conv_transpose(a: Parameters) -> Tensor:
    """Transposed convolution: the whole spread, then `pad` cropped off and cut to `output_shape`."""
    x, w = data(a), a["weight"]
    axes = x.dim() - 2
    stride, dilation = ints(a.get("strides")) or [1] * axes, ints(a.get("dilations")) or [1] * axes
    groups = int(a["groups"]) if "groups" in a else 1
    pad_type = a.get("pad_type", "valid")
    if pad_type not in ("valid", "custom"):
        raise EdgeqError(f"conv_transpose with pad_type {pad_type!r} is not interpreted: use explicit padding")
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    whole = function(x, w, None, stride, 0, 0, groups, dilation)
    pairs = ints(a["pad"]) if pad_type == "custom" else [0] * (2 * axes)
    sizes = ints(a.get("output_shape"))[2:] or [
        n - pairs[2 * i] - pairs[2 * i + 1] for i, n in enumerate(whole.shape[2:])
    ]
    for axis, size in enumerate(sizes):
        start = pairs[2 * axis]
        short = start + size - whole.shape[axis + 2]
        if short > 0:
            tail = [0] * (2 * (axes - 1 - axis)) + [0, short]
            whole = F.pad(whole, tail)
        whole = whole.narrow(axis + 2, start, size)
    return whole if "bias" not in a else whole + a["bias"].view(-1, *[1] * axes)


def max_pool(a: Parameters) -> Tensor:
    """Maximum over windows; padding never wins."""
    x, kernel, stride, pairs, ceil_mode = _pool(a)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    if pairs[::2] == pairs[1::2] and all(2 * p <= k for p, k in zip(pairs[::2], kernel, strict=True)):
        return function(x, kernel, stride, pairs[::2], 1, ceil_mode)
    return function(F.pad(x, torch_pad(pairs), value=-math.inf), kernel, stride, 0, 1, ceil_mode)


def avg_pool(a: Parameters) -> Tensor:
    """Mean over windows; padded zeros count unless exclude_padding_from_average."""
    x, kernel, stride, pairs, ceil_mode = _pool(a)
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    exclude = flag(a, "exclude_padding_from_average")
    if pairs[::2] == pairs[1::2] and all(2 * p <= k for p, k in zip(pairs[::2], kernel, strict=True)):
        pooled: Tensor = function(x, kernel, stride, pairs[::2], ceil_mode, not exclude)
        return pooled
    total: Tensor = function(F.pad(x, torch_pad(pairs)), kernel, stride, 0, ceil_mode)
    inside = function(F.pad(torch.ones_like(x), torch_pad(pairs)), kernel, stride, 0, ceil_mode)
    return total / inside if exclude else total


def _pool(a: Parameters) -> tuple[Tensor, list[int], list[int], list[int], bool]:
    x, kernel = data(a), ints(a["kernel_sizes"])
    stride = ints(a.get("strides")) or [1] * len(kernel)
    return x, kernel, stride, padding_of(a, list(x.shape[2:]), kernel, stride), flag(a, "ceil_mode")
