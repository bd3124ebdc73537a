"""TVM's kernels against NumPy int64 arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from int8_branches import (
    Branch,
    Ints,
    Net,
    Numbers,
    conv_sums,
    convolutions,
    dequantize,
    f32,
    finish,
    image,
    ints,
    quantize,
    weighted,
)
from torch import Tensor, nn

import edgeq
from edgeq.backends.tvm import moves, sums
from edgeq.backends.tvm.lower import lower
from edgeq.backends.tvm.run import load
from edgeq.backends.tvm.target import TARGET
from edgeq.graph.far import sqnr_db
from edgeq.graph.integer import read
from edgeq.graph.simulate import simulate

torch.set_num_threads(1)
few = settings(
    max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # no shrinking: every try compiles a library
)  # fmt: skip


def check(net: Net, shape: Sequence[int], oracles: Sequence[Ints], folder: Path, x: Tensor, **options: object) -> None:
    """Artefact, simulation and oracle agree in every byte; every operator was found to sum in integers."""
    program = torch.export.export(net, (x,))
    artifact = lower(program, folder, **options)  # type: ignore[arg-type] # lower's own
    assert {row.status for row in artifact.coverage} == {"integer"}, artifact.coverage
    results = load(artifact.path, threads=2)([x])
    predicted = simulate(read(program), [x], TARGET.arithmetic)
    for branch, got, simulated, wanted in zip(net.branches, results, predicted, oracles, strict=True):
        scale, zero_point = branch.out
        stored = np.rint(got.double().numpy() / scale).astype(np.int64) + zero_point
        np.testing.assert_array_equal(stored, wanted)
        assert torch.equal(got, simulated)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@few
@given(
    st.tuples(st.integers(7, 20), st.integers(7, 20)),
    st.integers(1, 10),
    st.integers(1, 40),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(-128, 127),
)
def test_convolutions_equal_int64_arithmetic(tmp_path_factory, size, half, outs, kernel, stride, dilation, zero):
    dilation = min(dilation, 2 if kernel < 5 else 1)
    net, x, wanted = convolutions(size, 2 * half, outs, kernel, stride, dilation, zero)
    check(net, x.shape, wanted, tmp_path_factory.mktemp("tvm"), x)


def test_the_plain_multiply_gives_the_same_bytes(folder: Path):
    net, x, wanted = convolutions((9, 8), 6, 20, 3, 2, 1, -7)
    check(net, x.shape, wanted, folder, x, target={"kind": "llvm", "mcpu": "x86-64"})


def test_kernels_for_avx512_and_vnni_compile(folder: Path):
    net, x, _ = convolutions((9, 8), 6, 20, 3, 2, 1, -7)
    program = torch.export.export(net, (x,))
    for cpu in ("skylake-avx512", "sapphirerapids"):
        artifact = lower(program, folder, name=cpu, target={"kind": "llvm", "mcpu": cpu})
        assert {row.status for row in artifact.coverage} == {"integer"}


@few
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 9), st.integers(1, 3), st.integers(-100, 100))
def test_linear_and_conv1d_equal_int64_arithmetic(tmp_path_factory, inputs, outs, rows, kernel, zero):
    numbers, out = (f32(0.02), zero), (f32(0.03 * inputs), -3)
    x, centred = image((2, rows + 3, inputs), inputs, numbers)
    line, across = ints((outs, inputs), 1), ints((outs, rows + 3, kernel), 2)
    branches = [
        Branch(out, lambda x, w, b: F.linear(x, w, b), line),
        Branch(out, lambda x, w, b: F.conv1d(x, w, b, 1, kernel - 1), across),
    ]
    total = centred @ line.numpy().astype(np.int64).T
    sums = conv_sums(
        np.pad(centred, ((0, 0), (0, 0), (kernel - 1, kernel - 1)))[:, :, None],
        across.numpy().astype(np.int64)[:, :, None],
        1,
        0,
        1,
        1,
    )[:, :, 0]
    wanted = [
        finish(weighted(total, branches[0], numbers, 2), out),
        finish(weighted(sums, branches[1], numbers, 1), out),
    ]
    check(Net(numbers, branches), x.shape, wanted, tmp_path_factory.mktemp("tvm"), x)


def added(a: Ints, b: Ints, scales: tuple[float, float], out: Numbers, sign: int = 1) -> Ints:
    """int32 fixed point: 21-bit multipliers, round half up by a shift."""
    ratios = [s / out[0] for s in scales]
    shift = 20 - int(np.floor(np.log2(max(ratios))))
    first, second = (round(r * 2**shift) for r in ratios)
    return np.clip(((a * first + sign * b * second + (1 << (shift - 1))) >> shift) + out[1], -128, 127)


def average(total: Ints, count: int | Ints, scale: float, out: Numbers) -> Ints:
    """Sums of `count` integers each, at one scale, as means at another: one factor, divided in float64 and rounded once."""
    m = np.float32(np.float64(np.float32(scale)) / (np.float64(np.float32(out[0])) * count))
    return finish(total.astype(np.float32) * m, out)


def windows(c: Ints, counts: bool) -> tuple[Ints, Ints]:
    """Sums over windows of 3×3 with stride 2 and padding 1, and of how many integers; counts: the padding is among them."""
    edges = ((0, 0), (0, 0), (1, 1), (1, 1))
    padded, ones = np.pad(c, edges), np.pad(np.ones_like(c), edges, constant_values=int(counts))
    rows, columns = ((n - 1) // 2 + 1 for n in c.shape[2:])
    taps = [
        (slice(None), slice(None), slice(i, i + 2 * rows - 1, 2), slice(j, j + 2 * columns - 1, 2))
        for i in range(3)
        for j in range(3)
    ]
    return sum(padded[t] for t in taps), sum(ones[t] for t in taps)


@few
@given(st.integers(1, 40), st.integers(4, 11), st.integers(4, 11), st.integers(-60, 60), st.floats(0.005, 0.2))
def test_operators_without_weights_equal_int64_arithmetic(tmp_path_factory, channels, height, width, zero, scale):
    numbers, out, other = (f32(0.04), zero), (f32(scale), 9), (f32(0.011), -20)
    x, c = image((2, channels, height, width), channels, numbers)
    ratio = np.float32(numbers[0]) / np.float32(out[0])
    mid_ratio = np.float32(numbers[0]) / np.float32(other[0])
    mid = np.clip(np.rint(c.astype(np.float32) * mid_ratio).astype(np.int64) + other[1], -128, 127) - other[1]

    def again(x: Callable[..., Tensor]) -> Tensor:
        """The input requantized to `other`, as a second operand."""
        return dequantize(quantize(x(), other), other)

    def plain(moved: Ints) -> Ints:
        return finish(moved.astype(np.float32) * ratio, out)

    def meaned(axes: tuple[int, ...], keep: bool = False) -> Ints:
        count = int(np.prod([c.shape[a] for a in axes]))
        return average(c.sum(axes, keepdims=keep), count, numbers[0], out)

    def pooled(counts: bool) -> Ints:
        return average(*windows(c, counts), numbers[0], out)

    low = np.pad(c, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1000)
    biggest = np.max([low[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)], axis=0)
    cases: list[tuple[Callable[..., Tensor], Ints]] = [
        (lambda x: x() + again(x), added(c, mid, (numbers[0], other[0]), out)),
        (lambda x: x() - again(x), added(c, mid, (numbers[0], other[0]), out, -1)),
        (
            lambda x: x() * again(x),
            finish(
                (c * mid).astype(np.float32) * (np.float32(numbers[0]) * np.float32(other[0]) / np.float32(out[0])), out
            ),
        ),
        (
            lambda x: torch.cat([x(), again(x)], 1),
            np.concatenate(
                [plain(c), finish(mid.astype(np.float32) * (np.float32(other[0]) / np.float32(out[0])), out)], 1
            ),
        ),
        (lambda x: F.relu(x()), finish(c.astype(np.float32) * ratio, out, 0)),
        (lambda x: F.hardtanh(x(), -0.5, 0.75), finish(c.astype(np.float32) * ratio, out, -0.5, 0.75)),
        (lambda x: x(), plain(c)),
        (lambda x: x().mean((2, 3)), meaned((2, 3))),
        (lambda x: F.adaptive_avg_pool2d(x(), 1), meaned((2, 3), True)),
        (lambda x: x().mean(1), meaned((1,))),
        (lambda x: F.avg_pool2d(x(), 3, 2, 1), pooled(True)),
        (lambda x: F.avg_pool2d(x(), 3, 2, 1, count_include_pad=False), pooled(False)),
        (lambda x: F.max_pool2d(x(), 3, 1, 1), plain(biggest)),
        (lambda x: x().reshape(2, height, channels * width), plain(c.reshape(2, height, channels * width))),
        (lambda x: torch.flatten(x(), 1), plain(c.reshape(2, -1))),
        (lambda x: x().permute(0, 2, 1, 3), plain(c.transpose(0, 2, 1, 3))),
        (lambda x: x().transpose(1, 3), plain(c.transpose(0, 3, 2, 1))),
        (lambda x: x()[:, :, 1:-1], plain(c[:, :, 1:-1])),
        (lambda x: x()[:, :, :, ::2], plain(c[:, :, :, ::2])),
        (lambda x: F.pad(x(), (1, 2, 0, 3)), plain(np.pad(c, ((0, 0), (0, 0), (0, 3), (1, 2))))),
        (lambda x: F.interpolate(x(), scale_factor=2), plain(c.repeat(2, 2).repeat(2, 3))),
    ]
    net = Net(numbers, [Branch(out, run) for run, _ in cases])
    check(net, x.shape, [wanted for _, wanted in cases], tmp_path_factory.mktemp("tvm"), x)


def test_outputs_cut_into_many_tasks_lose_no_byte(tmp_path_factory: pytest.TempPathFactory, monkeypatch):
    """Small networks are one task each; here every cut is made that a large one would have."""
    for name, value in (("STAGED_BYTES", 700), ("TASKS", 5), ("WORTH", 1)):
        monkeypatch.setattr(sums, name, value)
    for name, value in (("CHUNK", 48), ("ROWS", 3), ("WORTH", 100)):
        monkeypatch.setattr(moves, name, value)
    for shape in ((13, 11), 34, 70, 3, 1, 1, -5), ((6, 17), 40, 9, 1, 1, 1, 99), ((1, 40), 18, 20, 3, 2, 1, 0):
        net, x, wanted = convolutions(*shape)
        check(net, x.shape, wanted, tmp_path_factory.mktemp("cut"), x)
    test_linear_and_conv1d_equal_int64_arithmetic.hypothesis.inner_test(tmp_path_factory, 70, 150, 9, 3, 4)
    test_operators_without_weights_equal_int64_arithmetic.hypothesis.inner_test(tmp_path_factory, 40, 9, 8, 3, 0.05)


def test_views_and_unchanged_numbers_keep_every_byte(folder: Path):
    numbers = (f32(0.05), 11)
    x, c = image((1, 12, 1, 1), 0, numbers)
    net = Net(numbers, [Branch(numbers, lambda x: x().reshape(1, 12)), Branch(numbers, lambda x: F.pad(x(), (1, 1)))])
    check(net, x.shape, [c.reshape(1, 12) + 11, np.pad(c, ((0, 0), (0, 0), (0, 0), (1, 1))) + 11], folder, x)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(9, 16), (2, 3, 13, 9)),
        (nn.Linear(9, 16), (2, 3, 4, 5, 9)),
        (nn.Linear(9, 16), (9,)),
        (nn.Conv1d(64, 64, 1), (1, 64, 1500)),  # whose columns are cut into tasks
    ],
    ids=["4 axes", "5 axes", "1 axis", "long"],
)
def test_sums_in_every_rank(layer: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Within a step of the user's own layer on the grids: the integers are the simulation's, and near the float ones."""
    batches = [(torch.randn(shape, generator=torch.Generator().manual_seed(seed)),) for seed in range(3)]
    task = edgeq.Task("alone", lambda: layer.eval(), lambda: batches[0], lambda: batches)
    model = edgeq.quantize(task, target="tvm")
    artifact = edgeq.export(model, "tvm", folder=tmp_path)
    (got,) = load(artifact.path)(batches[0])
    assert torch.equal(got, model.simulate(batches[0], "tvm")[0])
    assert sqnr_db(layer(*batches[0]).detach(), got) > 30
