"""LiteRT: what is in the file, and that kernels, NumPy integers and our simulation agree in every byte."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeq.backends.litert.lower import check, lower
from edgeq.backends.litert.profile import profile
from edgeq.backends.litert.run import load
from edgeq.backends.litert.target import TARGET
from edgeq.graph.integer import IntegerOp, read
from edgeq.graph.simulate import simulate
from edgeq.spec import EdgeqError

Ints = NDArray[np.int64]
qd = torch.ops.quantized_decomposed
torch.set_num_threads(1)
few = settings(max_examples=10, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)


# ---------------------------------------------------------------- QDQ networks written by hand


def quantized(x: Tensor, numbers: tuple[float, int]) -> Tensor:
    """Quantize and dequantize, as a QDQ program states it."""
    q = qd.quantize_per_tensor.default(x, *numbers, -128, 127, torch.int8)
    return again(q, numbers)


def again(q: Tensor, numbers: tuple[float, int]) -> Tensor:
    real: Tensor = qd.dequantize_per_tensor.default(q, *numbers, -128, 127, torch.int8)
    return real


def numbers(rng: np.random.Generator, low: float = 0.01, high: float = 0.1) -> tuple[float, int]:
    """A scale, a power of two half the time so that ties happen, and a zero point."""
    scale = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    scale = 2.0 ** round(np.log2(scale)) if rng.integers(2) else scale
    return float(np.float32(scale)), int(rng.integers(-128, 128))


class Weighted(nn.Module):
    """Quantize → convolution or linear with int8 weights → quantize."""

    def __init__(
        self,
        rng: np.random.Generator,
        function: Callable[..., Tensor],
        shape: Sequence[int],
        axis: int,
        *arguments: Any,
    ) -> None:
        super().__init__()
        channels = shape[axis]
        self.function, self.axis, self.arguments = function, axis, arguments
        self.source, self.target = numbers(rng), numbers(rng, 0.2, 1.0)
        self.register_buffer("weight", torch.from_numpy(rng.integers(-127, 128, shape).astype(np.int8)))
        scales = torch.tensor([numbers(rng, 0.001, 0.02)[0] for _ in range(channels)])
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", torch.zeros(channels, dtype=torch.int64))
        self.integers = rng.integers(-4000, 4000, channels)
        unit = scales.double() * self.source[0]
        self.register_buffer("bias", (torch.from_numpy(self.integers) * unit).float())
        self.weight_only = False
        self.activation: Callable[[Tensor], Tensor] = lambda x: x

    def forward(self, x: Tensor) -> Tensor:
        weight = qd.dequantize_per_channel.default(
            self.weight, self.scales, self.zeros, self.axis, -127, 127, torch.int8
        )
        if self.weight_only:
            return self.function(x, weight, self.bias, *self.arguments)
        y = self.function(quantized(x, self.source), weight, self.bias, *self.arguments)
        return quantized(self.activation(y), self.target)


class Plain(nn.Module):
    """Quantize every input → operator → quantize."""

    def __init__(
        self, function: Callable[..., Tensor], sources: Sequence[tuple[float, int]], target: tuple[float, int]
    ) -> None:
        super().__init__()
        self.function, self.sources, self.target = function, sources, target

    def forward(self, *inputs: Tensor) -> Tensor:
        return quantized(
            self.function(*[quantized(x, n) for x, n in zip(inputs, self.sources, strict=True)]), self.target
        )


def integers(rng: np.random.Generator, *shape: int) -> Ints:
    return rng.integers(-128, 128, shape)


def floats(q: Ints, source: tuple[float, int]) -> Tensor:
    return ((torch.from_numpy(q) - source[1]).double() * source[0]).float()


def bytes_of(
    network: nn.Module, folder: Path, inputs: Sequence[tuple[Ints, tuple[float, int]]]
) -> tuple[dict[str, Ints], IntegerOp]:
    """Raw int8 output per kernel set, after asserting that each of our simulations predicts its kernel set."""
    examples = tuple(floats(*i) for i in inputs)
    program = torch.export.export(network.eval(), examples)
    artifact = lower(program, folder)
    assert all(row.status == "integer" for row in artifact.coverage), artifact.coverage
    found, operators = {}, read(program)
    (op,) = operators.ops.values()
    for kernels, arithmetic in (
        ("reference", "litert_reference"),
        ("builtin", "litert_builtin"),
        ("xnnpack", "litert_xnnpack"),
    ):
        (raw,) = load(artifact.path, kernels=kernels, raw=True)([torch.from_numpy(q).to(torch.int8) for q, _ in inputs])  # type: ignore[arg-type] # one of Kernels
        found[kernels] = raw.numpy().astype(np.int64)
        (expected,) = simulate(operators, examples, arithmetic)
        scale, zero_point = op.output_qparams.scale[0], op.output_qparams.zero_point[0]
        predicted = torch.round(expected.double() / scale).long() + zero_point
        np.testing.assert_array_equal(found[kernels], predicted.numpy(), err_msg=kernels)
    return found, op


# ---------------------------------------------------------------- the oracle: NumPy int64


def mantissa(real: float) -> tuple[int, int]:
    exponent = math.floor(math.log2(real)) + 1
    value = math.floor(real / 2.0**exponent * 2**31 + 0.5)
    return (value // 2, exponent + 1) if value == 2**31 else (value, exponent)


def fixed(x: Ints, real: float) -> Ints:
    """x · real: to 31 bits with ties upwards, then shifted with ties away from zero."""
    value, exponent = mantissa(real)
    high = (x * 2 ** max(exponent, 0) * value + 2**30) // 2**31
    shift = max(-exponent, 0)
    half = 2**shift // 2
    return np.sign(high) * ((np.abs(high) + half) // 2**shift)


def stored(x: Ints, zero_point: int, low: int = -128, high: int = 127) -> Ints:
    return np.clip(x + zero_point, low, high)


def per_channel(op: Weighted, sums: Ints, axis: int, rule: Callable[[Ints, float], Ints]) -> Ints:
    parts = [
        rule(np.take(sums, c, axis), op.source[0] * float(s) / op.target[0])
        for c, s in enumerate(op.scales.tolist())  # type: ignore[operator,union-attr] # a buffer
    ]
    return np.stack(parts, axis)


def xnnpack_rule(op: Weighted, sums: Ints, axis: int) -> Ints:
    """round half even of float32(sum) · float32 multiplier."""
    scales = np.float32(op.source[0]) * op.scales.numpy() / np.float32(op.target[0])  # type: ignore[operator] # a buffer
    shape = [1] * sums.ndim
    shape[axis] = -1
    return np.rint(sums.astype(np.float32) * scales.reshape(shape)).astype(np.int64)


def convolved(
    x: Ints, w: Ints, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int], groups: int
) -> Ints:
    """Σ x·w, tap by tap; x [N, C, H, W] without its zero point."""
    x = np.pad(x, ((0, 0), (0, 0), (pad[0],) * 2, (pad[1],) * 2))
    size = [(x.shape[2 + i] - dilation[i] * (w.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    out = np.zeros((x.shape[0], w.shape[0], *size), np.int64)
    inside, outside = w.shape[1], w.shape[0] // groups
    for g in range(groups):
        part, kernel = x[:, g * inside : (g + 1) * inside], w[g * outside : (g + 1) * outside]
        for i in range(w.shape[2]):
            for j in range(w.shape[3]):
                rows = slice(i * dilation[0], i * dilation[0] + (size[0] - 1) * stride[0] + 1, stride[0])
                columns = slice(j * dilation[1], j * dilation[1] + (size[1] - 1) * stride[1] + 1, stride[1])
                out[:, g * outside : (g + 1) * outside] += np.einsum(
                    "nchw,oc->nohw", part[:, :, rows, columns], kernel[:, :, i, j]
                )
    return out


# ---------------------------------------------------------------- weighted operators


@few
@given(
    seeds,
    st.sampled_from(["plain", "depthwise", "multiplier", "grouped"]),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.sampled_from([None, F.relu, F.relu6]),
)
def test_convolution_equals_integers(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    form: str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
    activation: Callable[[Tensor], Tensor] | None,
) -> None:
    rng = np.random.default_rng(seed)
    dilation = (1, 1) if stride != (1, 1) else (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    source, out, groups = {"plain": (3, 8, 1), "depthwise": (8, 8, 8), "multiplier": (4, 8, 4), "grouped": (4, 8, 2)}[
        form
    ]
    network = Weighted(rng, F.conv2d, (out, source // groups, *kernel), 0, stride, pad, dilation, groups)
    low = high = None
    if activation is not None:
        network.activation = activation
        low = network.target[1]
        high = None if activation is F.relu else low + math.floor(6 / network.target[0] + 0.5)
    x = integers(rng, int(rng.integers(1, 3)), source, 9, 10)
    found, _ = bytes_of(network, tmp_path_factory.mktemp("conv"), [(x, network.source)])
    weight = network.weight.numpy().astype(np.int64)  # type: ignore[operator] # a buffer
    sums = convolved(x - network.source[1], weight, stride, pad, dilation, groups) + network.integers[:, None, None]
    bounds = (-128 if low is None else max(low, -128), 127 if high is None else min(high, 127))
    np.testing.assert_array_equal(
        found["reference"], stored(per_channel(network, sums, 1, fixed), network.target[1], *bounds)
    )
    np.testing.assert_array_equal(found["xnnpack"], stored(xnnpack_rule(network, sums, 1), network.target[1], *bounds))


@few
@given(seeds, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(0, 1))
def test_transposed_convolution_equals_integers(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kernel: int, stride: int, pad: int, extra: int
) -> None:
    rng = np.random.default_rng(seed)
    pad, extra = min(pad, kernel - 1), min(extra, stride - 1)
    network = Weighted(rng, F.conv_transpose2d, (3, 4, kernel, kernel), 1, stride, pad, extra)
    x = integers(rng, 1, 3, 5, 6)
    found, _ = bytes_of(network, tmp_path_factory.mktemp("transposed"), [(x, network.source)])
    weight = network.weight.numpy().astype(np.int64)  # type: ignore[operator] # a buffer
    full = np.zeros((1, 4, 4 * stride + kernel + extra, 5 * stride + kernel + extra), np.int64)
    for i in range(kernel):
        for j in range(kernel):
            taps = np.einsum("nchw,co->nohw", x - network.source[1], weight[:, :, i, j])
            full[:, :, i : i + 4 * stride + 1 : stride, j : j + 5 * stride + 1 : stride] += taps
    height, width = 4 * stride - 2 * pad + kernel + extra, 5 * stride - 2 * pad + kernel + extra
    sums = full[:, :, pad : pad + height, pad : pad + width] + network.integers[:, None, None]
    np.testing.assert_array_equal(found["reference"], stored(per_channel(network, sums, 1, fixed), network.target[1]))
    if kernel < stride:  # the delegate leaves it to the optimised kernels
        np.testing.assert_array_equal(found["xnnpack"], found["builtin"])
    else:
        np.testing.assert_array_equal(found["xnnpack"], stored(xnnpack_rule(network, sums, 1), network.target[1]))


@few
@given(seeds, st.sampled_from([(7,), (3, 4), (2, 3, 2)]), st.sampled_from([1, 8]))
def test_linear_rounds_once_in_the_reference(
    tmp_path_factory: pytest.TempPathFactory, seed: int, leading: tuple[int, ...], channels: int
) -> None:
    rng = np.random.default_rng(seed)
    network = Weighted(rng, F.linear, (channels, 20), 0)
    x = integers(rng, *leading, 20)
    found, _ = bytes_of(network, tmp_path_factory.mktemp("linear"), [(x, network.source)])
    sums = (x - network.source[1]) @ network.weight.numpy().astype(np.int64).T + network.integers  # type: ignore[operator] # a buffer

    def once(s: Ints, real: float) -> Ints:
        return np.trunc(s * real + np.copysign(0.5, s)).astype(np.int64)

    np.testing.assert_array_equal(
        found["reference"], stored(per_channel(network, sums, sums.ndim - 1, once), network.target[1])
    )
    np.testing.assert_array_equal(
        found["xnnpack"], stored(xnnpack_rule(network, sums, sums.ndim - 1), network.target[1])
    )


def test_conv1d_runs_as_one_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    network = Weighted(rng, F.conv1d, (4, 3, 3), 0, 2, 1)
    x = integers(rng, 2, 3, 11)
    found, _ = bytes_of(network, tmp_path, [(x, network.source)])
    weight = network.weight.numpy().astype(np.int64)[:, :, None]  # type: ignore[operator] # a buffer
    sums = (
        convolved((x - network.source[1])[:, :, None], weight, (1, 2), (0, 1), (1, 1), 1)[:, :, 0]
        + network.integers[:, None]
    )
    np.testing.assert_array_equal(found["reference"], stored(per_channel(network, sums, 1, fixed), network.target[1]))


# ---------------------------------------------------------------- arithmetic


@few
@given(seeds, st.sampled_from(["add", "sub", "mul"]), st.booleans())
def test_two_operands_equal_integers(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str, broadcast: bool
) -> None:
    rng = np.random.default_rng(seed)
    function = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}[kind]
    (s1, z1), (s2, z2), (s, z) = (numbers(rng) for _ in range(3))
    a, b = integers(rng, 1, 4, 5, 6), integers(rng, *((1, 4, 1, 1) if broadcast else (1, 4, 5, 6)))
    network = Plain(function, [(s1, z1), (s2, z2)], (s, z))
    found, _ = bytes_of(network, tmp_path_factory.mktemp(kind), [(a, (s1, z1)), (b, (s2, z2))])
    if kind == "mul":
        expected = fixed((a - z1) * (b - z2), float(np.float32(s1) * np.float32(s2) / np.float32(s)))
    else:
        left, right = (fixed((x - zp) << 20, scale / (2 * max(s1, s2))) for x, scale, zp in ((a, s1, z1), (b, s2, z2)))
        expected = fixed(left + right if kind == "add" else left - right, 2 * max(s1, s2) / (2**20 * s))
    np.testing.assert_array_equal(found["reference"], stored(expected, z))


@few
@given(seeds, st.sampled_from([(2, 3), (1,), (3,)]), st.booleans())
def test_mean_equals_integers(
    tmp_path_factory: pytest.TempPathFactory, seed: int, axes: tuple[int, ...], keep: bool
) -> None:
    rng = np.random.default_rng(seed)
    source, (s, z) = numbers(rng), numbers(rng, 0.005, 0.02)
    x = integers(rng, 2, 5, 7, 6)
    network = Plain(lambda v: v.mean(axes, keepdim=keep), [source], (s, z))
    found, _ = bytes_of(network, tmp_path_factory.mktemp("mean"), [(x, source)])
    count = math.prod(x.shape[a] for a in axes)
    value, exponent = mantissa(source[0] / s)
    bits = min(count.bit_length() - 1, 31 + exponent)
    sums = (x - source[1]).sum(axes, keepdims=keep)
    high = (sums * 2 ** max(exponent - bits, 0) * (value * 2**bits // count) + 2**30) // 2**31
    shift = max(bits - exponent, 0)
    expected = np.sign(high) * ((np.abs(high) + 2**shift // 2) // 2**shift)
    np.testing.assert_array_equal(found["reference"], stored(expected, z))


def test_matmul_equals_integers(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    (s1, z1), (s2, z2), (s, z) = (0.03, 5), (0.04, -9), (0.11, 3)
    a, b = integers(rng, 2, 6, 7), integers(rng, 2, 7, 5)
    s1, s2, s = (float(np.float32(v)) for v in (s1, s2, s))
    found, _ = bytes_of(Plain(torch.matmul, [(s1, z1), (s2, z2)], (s, z)), tmp_path, [(a, (s1, z1)), (b, (s2, z2))])
    real = float(np.float32(s1) * np.float32(s2)) / s
    np.testing.assert_array_equal(found["reference"], stored(fixed((a - z1) @ (b - z2), real), z))


@pytest.mark.parametrize("counted", [True, False])
def test_average_pool_rounds_stored_integers(tmp_path: Path, counted: bool) -> None:
    rng = np.random.default_rng(3)
    source = (0.0625, -7)
    x = integers(rng, 1, 3, 8, 8)
    network = Plain(lambda v: F.avg_pool2d(v, 3, 1, 1, count_include_pad=counted), [source], source)
    found, _ = bytes_of(network, tmp_path, [(x, source)])
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=source[1] if counted else 0)
    ones = np.pad(np.ones_like(x), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=int(counted))
    total, count = (sum(v[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)) for v in (padded, ones))
    expected = np.sign(total) * ((np.abs(total) + count // 2) // count)
    np.testing.assert_array_equal(found["reference"], expected)


@few
@given(seeds)
def test_requantize_and_concatenation_of_unequal_scales(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = np.random.default_rng(seed)
    (s1, z1), (s2, z2), (s, z) = (numbers(rng) for _ in range(3))
    a, b = integers(rng, 1, 4, 5, 8), integers(rng, 1, 4, 5, 8)
    network = Plain(lambda x, y: torch.cat([x, y], 1), [(s1, z1), (s2, z2)], (s, z))
    found, _ = bytes_of(network, tmp_path_factory.mktemp("cat"), [(a, (s1, z1)), (b, (s2, z2))])
    parts = [x if (p, o) == (s, z) else stored(fixed(x - o, p / s), z) for x, p, o in ((a, s1, z1), (b, s2, z2))]
    np.testing.assert_array_equal(found["reference"], np.concatenate(parts, 1))


@pytest.mark.parametrize("bounds", [(0.0, None), (0.0, 6.0), (-0.7, 1.1)])
def test_standalone_activation_rescales(tmp_path: Path, bounds: tuple[float, float | None]) -> None:
    rng = np.random.default_rng(4)
    (s1, z1), (s, z) = (float(np.float32(0.07)), 11), (float(np.float32(0.05)), -20)
    x = integers(rng, 1, 4, 5, 16)
    function = {(0.0, None): F.relu, (0.0, 6.0): F.relu6}.get(bounds, lambda v: torch.clamp(v, *bounds))
    found, _ = bytes_of(Plain(function, [(s1, z1)], (s, z)), tmp_path, [(x, (s1, z1))])
    low = z + round(bounds[0] / s)
    high = 127 if bounds[1] is None else min(127, z + round(bounds[1] / s))
    ratio = float(np.float32(s1) / np.float32(s)) if bounds[0] == 0.0 else s1 / s
    np.testing.assert_array_equal(found["reference"], stored(fixed(x - z1, ratio), z, low, high))


@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "tanh"])
def test_tables_are_within_one_step_of_float(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(5)
    source = (float(np.float32(0.06)), 4)
    row = TARGET.support(kind)
    assert row is not None and row.fixed_output is not None
    scale, zero_point = row.fixed_output
    x = integers(rng, 8, 40)
    functions = {"softmax": lambda v: torch.softmax(v, -1), "sigmoid": torch.sigmoid, "tanh": torch.tanh}
    found, _ = bytes_of(Plain(functions[kind], [source], row.fixed_output), tmp_path, [(x, source)])
    exact = functions[kind](floats(x, source).double()).numpy() / scale + zero_point
    assert np.abs(np.clip(exact, -128, 127) - found["reference"]).max() <= 1


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "reshape": lambda x: x.reshape(1, -1),
    "flatten": lambda x: x.flatten(2),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(1, 3),
    "slice": lambda x: x[:, :, 1::2],
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "upsample": lambda x: F.interpolate(x, scale_factor=(2.0, 3.0)),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
}


@pytest.mark.parametrize("name", MOVES)
def test_movement_keeps_the_integers(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(6)
    source = (0.05, 0)
    x = integers(rng, 1, 3, 6, 8)
    found, _ = bytes_of(Plain(MOVES[name], [source], source), tmp_path, [(x, source)])
    expected = MOVES[name](torch.from_numpy(x).double()).numpy().astype(np.int64)
    for kernels, raw in found.items():
        np.testing.assert_array_equal(raw, expected, err_msg=kernels)


# ---------------------------------------------------------------- whole programs


class Residual(nn.Module):
    """Two inputs, two outputs, integers throughout: convolution → add → concatenation, mean."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(7)
        self.first = Weighted(rng, F.conv2d, (4, 3, 3, 3), 0, 2, 1)

    def forward(self, image: Tensor, skip: Tensor) -> dict[str, Tensor]:
        y = self.first(image)
        total = quantized(y + quantized(skip, (0.5, 3)), (0.5, 0))
        return {"b": quantized(torch.cat([total, total], 1), (0.5, 0)), "a": quantized(total.mean((2, 3)), (0.1, 5))}


class Islands(nn.Module):
    """Tokens → embedding → layer norm (float) → int8 linear → softmax and GELU (float) → weight-only linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        rng = np.random.default_rng(8)
        self.words, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.inner, self.last = Weighted(rng, F.linear, (8, 8), 0), Weighted(rng, F.linear, (4, 8), 0)
        self.last.weight_only = True

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.words(tokens))
        y = self.inner(x)
        return self.last(F.gelu(torch.softmax(y, -1) @ y.transpose(1, 2) @ x)), tokens


@pytest.mark.parametrize("io", ["int8", "float"])
def test_outputs_come_in_the_programs_order(tmp_path: Path, io: Any) -> None:
    inputs = (torch.randn(1, 3, 8, 8), torch.randn(1, 4, 4, 4))
    program = torch.export.export(Residual(), inputs)
    artifact = lower(program, tmp_path, io=io)
    outputs = load(artifact.path, kernels="reference")(inputs)
    expected = simulate(read(program), inputs, "litert_reference")
    assert [tuple(o.shape) for o in outputs] == [(1, 8, 4, 4), (1, 4)]
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(output, wanted)
    boundaries = sum(row.status != "integer" for row in artifact.coverage)
    assert boundaries == (0 if io == "int8" else 4)


def test_float_islands_stand_between_integer_operators(tmp_path: Path) -> None:
    network = Islands().eval()
    tokens = torch.randint(0, 20, (2, 8))
    program = torch.export.export(network, (tokens,))
    artifact = lower(program, tmp_path, layers={read(program).ops and next(iter(read(program).ops)): "inner/linear"})
    rows = {(row.kind, row.status) for row in artifact.coverage}
    assert ("FULLY_CONNECTED", "integer") in rows and ("FULLY_CONNECTED", "float island") in rows
    assert [row.layers for row in artifact.coverage if (row.kind, row.status) == ("FULLY_CONNECTED", "integer")] == [
        ("inner/linear",)
    ]
    again_bytes = lower(program, tmp_path / "again").path.read_bytes()
    assert hashlib.sha256(artifact.path.read_bytes()).digest() == hashlib.sha256(again_bytes).digest()
    assert network.last.weight.numpy().tobytes() in again_bytes  # type: ignore[operator] # weight-only stays int8
    output, same = load(artifact.path, kernels="reference")([tokens])
    (expected, _) = simulate(read(program), [tokens], "litert_reference")
    assert torch.equal(same, tokens)
    assert float((output - expected).abs().max()) <= 1e-3 * float(expected.abs().max())


def test_changed_numbers_in_the_file_are_found(tmp_path: Path) -> None:
    network = Weighted(np.random.default_rng(9), F.conv2d, (4, 3, 3, 3), 0)
    program = torch.export.export(network, (torch.randn(1, 3, 6, 6),))
    data = lower(program, tmp_path).path.read_bytes()
    assert check(data, read(program)) == []
    stored_weight = network.weight.permute(0, 2, 3, 1).contiguous().numpy().tobytes()  # type: ignore[operator] # a buffer
    at = data.index(stored_weight)
    damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    assert [p for p in check(damaged, read(program)) if "weights" in p]


def test_profile_has_a_row_per_operator(tmp_path: Path) -> None:
    inputs = (torch.randn(1, 3, 8, 8), torch.randn(1, 4, 4, 4))
    program = torch.export.export(Residual(), inputs)
    keys = {n.name: f"key of {n.name}" for op in read(program).ops.values() for n in (op.node, *op.node.users)}
    artifact = lower(program, tmp_path, layers=keys)
    report = profile(artifact, inputs, warmup=1, runs=5)
    operators = [row.name for row in report.rows if row.kind == "operator"]
    assert set(operators) <= {row.name for row in artifact.coverage} and len(operators) == len(set(operators))
    assert {key for row in report.rows for key in row.layers} == set(keys.values())
    assert (
        report.method == "litert profiler" and 0 < report.total_ms.p10 <= report.total_ms.median <= report.total_ms.p90
    )
    assert [row.kind for row in report.rows[-2:]] == ["overhead", "unattributed"]
    assert sum(row.ms for row in report.rows) == pytest.approx(report.total_ms.median)


def test_without_the_profiler_rows_are_what_prefixes_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeq.backends.litert.profile.available", lambda: False)
    inputs = (torch.randn(1, 3, 8, 8), torch.randn(1, 4, 4, 4))
    artifact = lower(torch.export.export(Residual(), inputs), tmp_path)
    report = profile(artifact, inputs, warmup=1, runs=5)
    operators = [row.name for row in report.rows if row.kind == "operator"]
    assert operators == [row.name for row in artifact.coverage]
    assert report.method == "prefixes" and sum(row.ms for row in report.rows) == pytest.approx(report.total_ms.median)


# ---------------------------------------------------------------- what goes wrong


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    program = torch.export.export(Plain(F.relu, [(0.1, 0)], (0.1, 0)), (torch.randn(1, 4),))
    path = lower(program, tmp_path).path
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(EdgeqError, match=r"model\.tflite"):
            load(path)
    with pytest.raises(EdgeqError, match="cannot be read"):
        load(tmp_path / "none.tflite")


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    program = torch.export.export(Plain(F.relu, [(0.1, 0)], (0.1, 0)), (torch.randn(1, 4),))
    run = load(lower(program, tmp_path).path)
    with pytest.raises(EdgeqError, match="takes 1 inputs, got 0"):
        run([])
    with pytest.raises(EdgeqError, match=r"is \(1, 4\), got \(1, 5\)"):
        run([torch.randn(1, 5)])


def test_a_kernel_that_does_not_exist_is_named(tmp_path: Path) -> None:
    network = Weighted(np.random.default_rng(10), F.conv_transpose2d, (4, 2, 2, 2), 1, 2, 0, 0, 2)
    network.scales, network.zeros, network.bias = network.scales[:2], network.zeros[:2], None  # type: ignore[index,assignment]
    program = torch.export.export(network, (torch.randn(1, 4, 3, 3),))
    (name,) = read(program).ops
    with pytest.raises(EdgeqError, match=r"^up/conv_transpose2d \(conv_transpose2d\): .* groups"):
        lower(program, tmp_path, layers={name: "up/conv_transpose2d"})
    assert not list(tmp_path.iterdir())
