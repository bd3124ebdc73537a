"""LiteRT, operator by operator: kernels, NumPy integers and our simulation agree in every byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from qdq_operators import Ints, Plain, Weighted, floats, integers, numbers
from torch import Tensor, nn

from edgeq.backends.litert.lower import lower
from edgeq.backends.litert.run import load
from edgeq.backends.litert.target import TARGET
from edgeq.graph.integer import IntegerOp, read
from edgeq.graph.simulate import simulate

torch.set_num_threads(1)
few = settings(max_examples=10, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**32 - 1)


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
