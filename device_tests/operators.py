"""Networks of one quantized operator with random shapes and scales, and what they compute in NumPy int64.

Shares no code with the project: integer sums come from tests/oracle.py, each kernel set's rounding from rounding.py here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import oracle
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

Ints = NDArray[np.int64]
Grid = tuple[float, int]  # scale, zero point
qd = torch.ops.quantized_decomposed

CLIPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float] | None]] = {
    "": (lambda t: t, None),
    "relu": (F.relu, (0.0, math.inf)),
    "relu6": (F.relu6, (0.0, 6.0)),
}
WEIGHTED = ("conv2d", "conv_transpose2d", "linear", "conv1d")
PAIRS = ("add", "sub", "mul", "cat", "matmul")
SAME_GRID = ("cat", "max_pool2d", "avg_pool2d", "relu", "slice", "subsample", "permute", "reshape", "pad", "upsample")
CURVES = {"softmax": (1 / 256, -128), "sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}  # their only output grids


@dataclass(frozen=True, slots=True)
class Spec:
    """One operator; what its kind does not have stays at its default. Shapes are [batch, channels, *size]."""

    kind: str
    seed: int
    batch: int = 1
    channels: int = 4
    outputs: int = 4
    size: tuple[int, int] = (6, 7)
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    clip: str = ""

    def __str__(self) -> str:
        """As a failing test shows it."""
        changed = [f"{name}={getattr(self, name)}" for name in self.__slots__ if name != "kind"]
        return f"{self.kind}({', '.join(changed)})"


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def specs(draw: st.DrawFn, kind: str, dilated_transposes: bool = False) -> Spec:
    """A random operator of `kind`; a convolution's form may stand behind it, as `conv2d depthwise`."""
    kind, _, form = kind.partition(" ")
    seed, batch = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 2))
    size = draw(pairs(5, 33 if kind in ("conv2d", "conv1d") else 13))
    if (kind == "linear" or form == "pointwise") and draw(st.booleans()):
        batch, size = 1, (1, 1)  # one vector, for which runtimes have code of their own
    clip = draw(st.sampled_from(list(CLIPS))) if kind in (*WEIGHTED, "add", "sub", "mul") else ""
    channels, outputs = draw(st.integers(1, 37)), draw(st.integers(1, 37))
    spec = Spec(kind, seed, batch, channels, outputs, size, clip=clip)
    if kind in ("conv2d", "conv1d"):
        groups = 1
        if form == "depthwise":
            groups = outputs = channels
        elif form == "multiplier":
            groups, outputs = channels, draw(st.integers(2, 3)) * channels
        elif form == "grouped" or (kind == "conv1d" and draw(st.booleans())):
            groups = draw(st.integers(2, 5))
            channels, outputs = groups * draw(st.integers(1, 15)), groups * draw(st.integers(1, 15))
        high = 1 if form == "pointwise" else 5
        kernel = (draw(st.integers(1, high if kind == "conv2d" else 1)), draw(st.integers(1, high)))
        padding = tuple(draw(st.integers(0, min(2, k - 1))) for k in kernel)
        fits = [(n + 2 * p - 1) // max(k - 1, 1) for n, p, k in zip(size, padding, kernel, strict=True)]
        dilation = tuple(draw(st.integers(1, min(4, n))) if k > 1 else 1 for n, k in zip(fits, kernel, strict=True))
        stride = draw(pairs(1, 2)) if dilation == (1, 1) else (1, 1)
        return replace(
            spec, channels=channels, outputs=outputs, kernel=kernel, stride=stride, padding=padding, dilation=dilation,
            groups=groups,
        )  # fmt: skip
    if kind == "conv_transpose2d":
        stride = draw(pairs(1, 2))
        kernel = (draw(st.integers(stride[0], 4)), draw(st.integers(stride[1], 4)))
        padding = (min(draw(st.integers(0, 1)), kernel[0] - 1), min(draw(st.integers(0, 1)), kernel[1] - 1))
        dilation = draw(pairs(1, 2)) if dilated_transposes else (1, 1)
        return replace(spec, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    if kind in ("max_pool2d", "avg_pool2d"):
        return replace(spec, kernel=draw(pairs(2, 3)), stride=draw(pairs(1, 2)))
    return spec


def form(spec: Spec) -> str:
    """Which code of a runtime computes a convolution: `dilated` and how its channels hang together; else the kind."""
    if spec.kind not in ("conv2d", "conv1d", "conv_transpose2d"):
        return spec.kind
    joined = "dense" if spec.groups == 1 else "grouped"
    if spec.groups == spec.channels > 1:
        joined = "depthwise" if spec.outputs == spec.channels else "multiplier"
    return f"{'dilated ' if max(spec.dilation) > 1 else ''}{joined} {spec.kind}"


class Operator(nn.Module):
    """The network of a spec: quantized inputs → operator → quantized output."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        rng = np.random.default_rng(spec.seed)
        self.spec = spec
        self.grids: list[Grid] = [grid(rng) for _ in range(2 if spec.kind in PAIRS else 1)]
        if spec.kind == "cat":
            self.grids[1] = self.grids[0]
        self.target = self.grids[0] if spec.kind in SAME_GRID else CURVES.get(spec.kind) or self._target(rng)
        if spec.kind in WEIGHTED:
            shape = self._weight_shape()
            self.axis = 1 if spec.kind == "conv_transpose2d" else 0
            channels = shape[self.axis]
            self.weight = rng.integers(-127, 128, shape)
            self.scales = np.float32([grid(rng)[0] / 8 for _ in range(channels)])
            self.steps = rng.integers(-4000, 4000, channels)
            self.register_buffer("q", torch.from_numpy(self.weight.astype(np.int8)))
            self.register_buffer("s", torch.from_numpy(self.scales))
            self.register_buffer("z", torch.zeros(channels, dtype=torch.int64))
            unit = self.scales.astype(np.float64) * np.float32(self.grids[0][0])
            self.register_buffer("bias", torch.from_numpy((self.steps * unit).astype(np.float32)))
        size = (spec.batch, spec.channels, *spec.size)
        if spec.kind == "linear":
            size = (spec.batch, spec.size[0], spec.channels)
        elif spec.kind == "conv1d":
            size = (spec.batch, spec.channels, spec.size[1])
        elif spec.kind == "matmul":
            size = (spec.batch, *spec.size)
        self.integers: list[Ints] = [rng.integers(-128, 128, size) for _ in self.grids]
        if spec.kind == "matmul":
            self.integers[1] = rng.integers(-128, 128, (spec.batch, spec.size[1], spec.channels))

    def _target(self, rng: np.random.Generator) -> Grid:
        """A grid on which most of the output fits, so that little is clipped."""
        spec, (scale, zero_point) = self.spec, grid(rng)
        if spec.kind in WEIGHTED:
            taps = spec.channels // spec.groups * spec.kernel[0] * spec.kernel[1]
            scale *= 24 * math.sqrt(taps) * self.grids[0][0]
        elif spec.kind == "matmul":
            scale *= 40 * math.sqrt(spec.size[1]) * self.grids[0][0]
        elif spec.kind == "mul":
            scale *= 40 * self.grids[0][0]
        elif spec.kind == "mean":
            scale /= math.sqrt(spec.size[0] * spec.size[1])
        return float(np.float32(scale)), zero_point

    def _weight_shape(self) -> tuple[int, ...]:
        spec = self.spec
        if spec.kind == "linear":
            return (spec.outputs, spec.channels)
        if spec.kind == "conv1d":
            return (spec.outputs, spec.channels // spec.groups, spec.kernel[1])
        if spec.kind == "conv_transpose2d":
            return (spec.channels, spec.outputs, *spec.kernel)
        return (spec.outputs, spec.channels // spec.groups, *spec.kernel)

    def inputs(self) -> tuple[Tensor, ...]:
        """Floats that lie on the inputs' grids."""
        return tuple(
            ((torch.from_numpy(q) - zero).double() * scale).float()
            for q, (scale, zero) in zip(self.integers, self.grids, strict=True)
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """The QDQ network."""
        real = [requantized(x, g) for x, g in zip(inputs, self.grids, strict=True)]
        return requantized(CLIPS[self.spec.clip][0](self._apply(*real)), self.target)

    def _apply(self, x: Tensor, *others: Tensor) -> Tensor:
        s = self.spec
        if s.kind in WEIGHTED:
            w = qd.dequantize_per_channel.default(self.q, self.s, self.z, self.axis, -127, 127, torch.int8)
            b: Tensor = self.bias  # type: ignore[assignment] # a buffer
            if s.kind == "linear":
                return F.linear(x, w, b)
            if s.kind == "conv1d":
                return F.conv1d(x, w, b, s.stride[1], s.padding[1], s.dilation[1], s.groups)
            if s.kind == "conv_transpose2d":
                return F.conv_transpose2d(x, w, b, s.stride, s.padding, 0, 1, s.dilation)
            return F.conv2d(x, w, b, s.stride, s.padding, s.dilation, s.groups)
        table: dict[str, Callable[[], Tensor]] = {
            "add": lambda: x + others[0],
            "sub": lambda: x - others[0],
            "mul": lambda: x * others[0],
            "cat": lambda: torch.cat([x, *others], 1),
            "mean": lambda: x.mean((2, 3), keepdim=True),
            "max_pool2d": lambda: F.max_pool2d(x, s.kernel, s.stride),
            "avg_pool2d": lambda: F.avg_pool2d(x, s.kernel, s.stride),
            "slice": lambda: x[:, :, 1:-1],
            "subsample": lambda: x[:, :, ::2],
            "permute": lambda: x.permute(0, 2, 3, 1),
            "reshape": lambda: x.reshape(s.batch, -1),
            "pad": lambda: F.pad(x, (1, 2, 0, 1)),
            "upsample": lambda: F.interpolate(x, scale_factor=(2.0, 3.0)),
            "requantize": lambda: x,
            "relu": lambda: F.relu(x),
            "matmul": lambda: x @ others[0],
            "softmax": lambda: torch.softmax(x, 1),
            "sigmoid": lambda: torch.sigmoid(x),
            "tanh": lambda: torch.tanh(x),
        }
        return table[s.kind]()

    def sums(self) -> Ints:
        """The exact integers before requantisation: Σ (x − zero point)·w + bias, a product, a sum or what was moved.

        Of add and sub nothing is exact before the rule has scaled both sides, so this is not for them.
        """
        s = self.spec
        x, *others = (q - g[1] for q, g in zip(self.integers, self.grids, strict=True))
        if s.kind == "linear":
            return x @ self.weight.T + self.steps
        if s.kind == "conv1d":
            along = ((1, s.stride[1]), (0, s.padding[1]), (1, s.dilation[1]))
            return oracle.conv2d(x[:, :, None], self.weight[:, :, None], self.steps, 0, *along, s.groups)[:, :, 0]
        if s.kind == "conv2d":
            return oracle.conv2d(x, self.weight, self.steps, 0, s.stride, s.padding, s.dilation, s.groups)
        if s.kind == "conv_transpose2d":
            return oracle.conv_transpose2d(x, self.weight, self.steps, 0, s.stride, s.padding, (0, 0), s.dilation)
        table: dict[str, Callable[[], Ints]] = {
            "mul": lambda: x * others[0],
            "cat": lambda: np.concatenate([x, *others], 1),
            "mean": lambda: x.sum((2, 3), keepdims=True),
            "max_pool2d": lambda: windows(x, s.kernel, s.stride).max((-1, -2)),
            "avg_pool2d": lambda: windows(x, s.kernel, s.stride).sum((-1, -2)),
            "slice": lambda: x[:, :, 1:-1],
            "subsample": lambda: x[:, :, ::2],
            "permute": lambda: x.transpose(0, 2, 3, 1),
            "reshape": lambda: x.reshape(s.batch, -1),
            "pad": lambda: np.pad(x, ((0, 0), (0, 0), (0, 1), (1, 2))),
            "upsample": lambda: x.repeat(2, 2).repeat(3, 3),
            "requantize": lambda: x,
            "relu": lambda: np.maximum(x, 0),
            "matmul": lambda: x @ others[0],
        }
        return table[s.kind]()


def requantized(x: Tensor, numbers: Grid) -> Tensor:
    """Quantize and dequantize, as a QDQ program states it."""
    q = qd.quantize_per_tensor.default(x, *numbers, -128, 127, torch.int8)
    real: Tensor = qd.dequantize_per_tensor.default(q, *numbers, -128, 127, torch.int8)
    return real


def grid(rng: np.random.Generator) -> Grid:
    """A scale that makes ties likely (a small multiple of a power of two) or one that does not, and a zero point."""
    scale = rng.integers(1, 16) * 2.0 ** -int(rng.integers(4, 8)) if rng.random() < 0.5 else rng.uniform(0.02, 0.2)
    return float(np.float32(scale)), int(rng.integers(-100, 100))


def windows(x: Ints, kernel: tuple[int, int], stride: tuple[int, int]) -> Ints:
    """[N, C, H', W', kh, kw]."""
    seen = np.lib.stride_tricks.sliding_window_view(x, kernel, (2, 3))  # type: ignore[call-overload] # axes as a tuple
    return np.asarray(seen[:, :, :: stride[0], :: stride[1]])


class Side(nn.Module):
    """Many one-operator networks in one program: a lowering and a process serve them all."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        super().__init__()
        self.operators = nn.ModuleList(operators)
        self.counts = [len(o.grids) for o in operators]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Each operator's output on its own inputs."""
        results, position = [], 0
        for operator, count in zip(self.operators, self.counts, strict=True):
            results.append(operator(*inputs[position : position + count]))
            position += count
        return tuple(results)
