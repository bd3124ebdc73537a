"""Every kind of sum in one form, as its kernel walks it, and its weights in the order in which it reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.graph.integer import IntegerOp
from edgeq.graph.ops import ConvAttrs

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Every kind of sum in one form.

    Output row i·phases + r reads staged rows i·stride + (r + shift) // phases + k·dilation for k < kernel, where the
    staged input has `pad` rows of zero points in front; likewise columns. Convolutions have one phase; a transposed
    convolution of stride s has s, each a small convolution of its own.
    last: whether channels are the fastest axis of input and output; else ([N, C, L]) they are the slowest but one.
    """

    batch: int
    size: tuple[int, int]
    out: tuple[int, int]
    channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    phases: tuple[int, int] = (1, 1)
    shift: tuple[int, int] = (0, 0)
    last: bool = True

    @property
    def per_phase(self) -> tuple[int, int]:
        """Output rows and columns of the longest phase."""
        return -(-self.out[0] // self.phases[0]), -(-self.out[1] // self.phases[1])

    @property
    def staged(self) -> tuple[int, int]:
        """Rows and columns of the staged input: what some output reads."""
        return self._staged(0), self._staged(1)

    def _staged(self, axis: int) -> int:
        last_phase = (self.phases[axis] - 1 + self.shift[axis]) // self.phases[axis]
        reach = (self.kernel[axis] - 1) * self.dilation[axis]
        return (self.per_phase[axis] - 1) * self.stride[axis] + last_phase + reach + 1


def geometry(op: IntegerOp, x: tuple[int, ...], out: tuple[int, ...]) -> tuple[Geometry, Array]:
    """The sum of `op` on torch shapes x → out, and its weights as [phase, C_out, C_in/groups, kh, kw] int8."""
    assert op.weight is not None
    w = op.weight.numpy()
    if op.kind == "linear":
        if len(x) == 4:  # channels-last of [N, A, B, C] is [N, B, C, A]: what is summed lies slowest but one
            g = Geometry(x[0] * x[2], (1, x[1]), (1, x[1]), x[3], out[3], 1, (1, 1), last=False)
            return g, w[None, :, :, None, None]
        rows = int(np.prod(x[:-1], dtype=np.int64))
        return Geometry(1, (1, rows), (1, rows), x[-1], out[-1], 1, (1, 1)), w[None, :, :, None, None]
    a = op.attrs
    assert isinstance(a, ConvAttrs)
    if op.kind == "conv1d":
        (s,), (p,), (d,) = a.stride, a.padding, a.dilation
        g = Geometry(
            x[0], (1, x[2]), (1, out[2]), x[1], out[1], a.groups, (1, w.shape[2]), (1, s), (1, d), (0, p), last=False
        )
        return g, w[None, :, :, None, :]
    size, result = (x[2], x[3]), (out[2], out[3])
    if op.kind == "conv_transpose2d":
        return _transposed(a, w, x[0], size, result)
    kernel = (w.shape[2], w.shape[3])
    stride, dilation, padding = _pair(a.stride), _pair(a.dilation), _pair(a.padding)
    if kernel == (1, 1) and stride == (1, 1) and padding == (0, 0):  # pixels are independent: one long row
        size = result = (1, x[0] * x[2] * x[3])
        return Geometry(1, size, result, x[1], out[1], a.groups, kernel), w[None]
    return Geometry(x[0], size, result, x[1], out[1], a.groups, kernel, stride, dilation, padding), w[None]


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def _transposed(
    a: ConvAttrs, w: Array, batch: int, size: tuple[int, int], out: tuple[int, int]
) -> tuple[Geometry, Array]:
    """A transposed convolution as stride² plain ones: output s·i + r takes the taps k ≡ r + padding (mod s)."""
    cin, per_group = w.shape[:2]
    (sh, sw), (dh, dw), shift = _pair(a.stride), _pair(a.dilation), _pair(a.padding)
    spread = np.zeros((cin, per_group, (w.shape[2] - 1) * dh + 1, (w.shape[3] - 1) * dw + 1), np.int8)
    spread[:, :, ::dh, ::dw] = w
    taps = (-(-spread.shape[2] // sh), -(-spread.shape[3] // sw))
    groups, each = a.groups, cin // a.groups
    phases = np.zeros((sh * sw, groups * per_group, each, *taps), np.int8)
    for r in range(sh):
        for q in range(sw):
            part = spread[:, :, (r + shift[0]) % sh :: sh, (q + shift[1]) % sw :: sw]
            part = part.reshape(groups, each, per_group, *part.shape[2:]).swapaxes(1, 2)
            part = part.reshape(groups * per_group, each, *part.shape[3:])[:, :, ::-1, ::-1]
            phases[r * sw + q, :, :, taps[0] - part.shape[2] :, taps[1] - part.shape[3] :] = part
    g = Geometry(
        batch, size, out, cin, groups * per_group, groups, taps,
        pad=(taps[0] - 1, taps[1] - 1), phases=(sh, sw), shift=shift,
    )  # fmt: skip
    return g, phases
