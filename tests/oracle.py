"""Integer operators in NumPy int64, written from the definitions; shares no code with the project."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def conv2d(
    x: Ints,
    w: Ints,
    bias: Ints,
    zero_point: int,
    stride: tuple[int, int],
    pad: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Ints:
    """Σ (x − zero_point)·w + bias; x [N, C, H, W], w [O, C/groups, kh, kw]."""
    n, _, height, width = x.shape
    out_c, in_c, kh, kw = w.shape
    shifted = np.pad(x.astype(np.int64) - zero_point, ((0, 0), (0, 0), (pad[0],) * 2, (pad[1],) * 2))
    oh = (height + 2 * pad[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (width + 2 * pad[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    total = np.zeros((n, out_c, oh, ow), np.int64)
    for o in range(out_c):
        first = (o // (out_c // groups)) * in_c
        for c in range(in_c):
            for i in range(kh):
                for j in range(kw):
                    rows = slice(i * dilation[0], i * dilation[0] + (oh - 1) * stride[0] + 1, stride[0])
                    cols = slice(j * dilation[1], j * dilation[1] + (ow - 1) * stride[1] + 1, stride[1])
                    total[:, o] += shifted[:, first + c, rows, cols] * int(w[o, c, i, j])
    return total + bias.reshape(1, -1, 1, 1)


def conv_transpose2d(
    x: Ints,
    w: Ints,
    bias: Ints,
    zero_point: int,
    stride: tuple[int, int],
    pad: tuple[int, int],
    output_padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> Ints:
    """Scatter form; x [N, C, H, W], w [C, O, kh, kw]."""
    n, in_c, height, width = x.shape
    _, out_c, kh, kw = w.shape
    reach_h, reach_w = (kh - 1) * dilation[0] + 1, (kw - 1) * dilation[1] + 1
    full_h = (height - 1) * stride[0] + reach_h + output_padding[0]
    full_w = (width - 1) * stride[1] + reach_w + output_padding[1]
    total = np.zeros((n, out_c, full_h, full_w), np.int64)
    shifted = x.astype(np.int64) - zero_point
    for c in range(in_c):
        for i in range(height):
            for j in range(width):
                patch = shifted[:, c, i, j][:, None, None, None] * w[c][None].astype(np.int64)
                rows = slice(i * stride[0], i * stride[0] + reach_h, dilation[0])
                cols = slice(j * stride[1], j * stride[1] + reach_w, dilation[1])
                total[:, :, rows, cols] += patch
    total = total[:, :, pad[0] : full_h - pad[0], pad[1] : full_w - pad[1]]
    return total + bias.reshape(1, -1, 1, 1)
