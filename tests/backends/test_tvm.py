"""TVM's kernels against NumPy int64 arithmetic written here, and the artefact's manners."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import edgeq
from edgeq import backends
from edgeq.backends.tvm import bundle, moves, sums
from edgeq.backends.tvm.inspection import placement
from edgeq.backends.tvm.lower import lower
from edgeq.backends.tvm.profile import profile
from edgeq.backends.tvm.run import load, use_threads
from edgeq.backends.tvm.target import TARGET
from edgeq.backends.tvm.tir import flat, prim_func
from edgeq.graph.far import sqnr_db
from edgeq.graph.integer import read
from edgeq.graph.simulate import simulate
from edgeq.spec import Artifact, EdgeqError

torch.set_num_threads(1)
qd = torch.ops.quantized_decomposed
Ints = npt.NDArray[np.int64]
Numbers = tuple[float, int]  # scale, zero point
few = settings(
    max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],  # no shrinking: every try compiles a library
)  # fmt: skip


def quantize(x: Tensor, numbers: Numbers) -> Tensor:
    return qd.quantize_per_tensor(x, *numbers, -128, 127, torch.int8)


def dequantize(x: Tensor, numbers: Numbers) -> Tensor:
    return qd.dequantize_per_tensor(x, *numbers, -128, 127, torch.int8)


def f32(value: float) -> float:
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


def image(shape: Sequence[int], seed: int, numbers: Numbers) -> tuple[Tensor, Ints]:
    """A float input on its grid, and the same as integers − zero point."""
    q = ints(shape, seed, low=-128)
    return (q.float() - numbers[1]) * np.float32(numbers[0]), q.numpy().astype(np.int64) - numbers[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


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
        m = np.float32(np.float64(np.float32(numbers[0])) / (np.float64(np.float32(out[0])) * count))
        return finish(c.sum(axes, keepdims=keep).astype(np.float32) * m, out)

    def pooled(pad: int, counts: bool) -> Ints:
        padded = np.pad(c, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        ones = np.pad(np.ones_like(c), ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=int(counts))
        rows, columns = ((n + 2 * pad - 3) // 2 + 1 for n in c.shape[2:])
        windows = [
            (slice(None), slice(None), slice(i, i + 2 * rows - 1, 2), slice(j, j + 2 * columns - 1, 2))
            for i in range(3)
            for j in range(3)
        ]
        total, count = sum(padded[w] for w in windows), sum(ones[w] for w in windows)
        m = np.float32(np.float64(np.float32(numbers[0])) / (np.float64(np.float32(out[0])) * count))
        return finish(total.astype(np.float32) * m, out)

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
        (lambda x: F.avg_pool2d(x(), 3, 2, 1), pooled(1, True)),
        (lambda x: F.avg_pool2d(x(), 3, 2, 1, count_include_pad=False), pooled(1, False)),
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


class Transformer(nn.Module):
    """Embedding, attention and a GELU feed-forward layer: one float island."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 16)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(tokens)
        scores = torch.softmax(x @ x.transpose(1, 2) / 4 + (1 - mask)[:, None] * -1e4, -1)
        x = self.norm(x + scores @ x)
        y = self.down(F.gelu(self.up(x), approximate="tanh"))
        return {"pooled": (y * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), "tokens": torch.sigmoid(y)}


def test_a_float_transformer_runs_as_torch_does(folder: Path):
    net = Transformer().eval()
    inputs = (torch.randint(0, 50, (2, 7)), (torch.arange(7) < 5).float().expand(2, 7).contiguous())
    artifact = lower(torch.export.export(net, inputs), folder)
    integers = [row.reason for row in artifact.coverage if row.status != "float island"]
    assert integers == ["integer or logical values"]  # the tokens on their way to the embedding
    got = load(artifact.path)(inputs)
    for result, wanted in zip(got, net(*inputs).values(), strict=True):
        torch.testing.assert_close(result, wanted, atol=2e-5, rtol=1e-4)


def test_a_float_network_with_convolutions_runs_as_torch_does(folder: Path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 18, 3, 2, 1), nn.ReLU6(), nn.Conv2d(18, 18, 5, 1, 2, groups=18), nn.SiLU(), nn.Conv2d(18, 7, 1),
        nn.ConvTranspose2d(7, 5, 2, 2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2),
        nn.Flatten(), nn.Linear(5 * 22 * 32, 10),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 22, 31)
    artifact = lower(torch.export.export(net, (x,)), folder)
    torch.testing.assert_close(load(artifact.path)([x])[0], net(x), atol=2e-5, rtol=1e-4)


def test_an_operator_tvm_lacks_is_named(folder: Path):
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).real

    program = torch.export.export(Odd(), (torch.randn(4),))
    keys = {n.name: f"head/{n.name}" for n in program.graph.nodes}
    with pytest.raises(EdgeqError, match=r"TVM's importer has no \w*fft\w* \(head/.*; rewrite it"):
        lower(program, folder, layers=keys)
    assert not list(folder.iterdir())


def test_a_kernel_that_sums_in_float_is_not_called_integer():
    def body(T, buffers):
        x, weight, out = (flat(T, b) for b in buffers)
        total = T.alloc_buffer((1,), "float32", scope="global")
        T.buffer_store(total, T.float32(0), [0])
        with T.serial(0, 8) as i:
            product = T.cast(x[i], "float32") * T.cast(weight[i], "float32")
            T.buffer_store(total, total[0] + product, [0])
        T.buffer_store(out, T.cast(total[0], "int8"), [0])

    kernel = prim_func("linear", [("x", (8,), "int8"), ("weight", (8,), "int8"), ("out", (1,), "int8")], body)
    assert placement(kernel, "fake", "linear", ()).status == "float island"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor, Tensor, Artifact]:
    """A compiled network, its input, its output, and its coverage with it."""
    net, x, _ = convolutions((9, 8), 4, 6, 3, 1, 1, 3)
    program = torch.export.export(net, (x,))
    keys = {n.name: f"layer.{n.name}" for n in program.graph.nodes if n.op == "call_function"}
    artifact = lower(program, tmp_path_factory.mktemp("small"), layers=keys)
    return artifact.path, x, load(artifact.path)([x])[0], artifact


def test_same_program_same_bytes(small: tuple[Path, Tensor, Tensor, Artifact], folder: Path):
    net, x, _ = convolutions((9, 8), 4, 6, 3, 1, 1, 3)
    program = torch.export.export(net, (x,))
    keys = {n.name: f"layer.{n.name}" for n in program.graph.nodes if n.op == "call_function"}
    assert lower(program, folder, layers=keys).path.read_bytes() == small[0].read_bytes()


def test_profile_names_kernels_and_layers(small: tuple[Path, Tensor, Tensor, Artifact]):
    report = profile(small[3], [small[1]], warmup=1, runs=3)
    rows = {row.name.rsplit("_quantize")[0]: row for row in report.rows}
    assert {"conv2d", "depthwise_conv2d", "conv_transpose2d", "quantize", "dequantize"} <= set(rows) | {
        row.name.split("_quantize")[0].split("_dequantize")[0] for row in report.rows
    }
    assert any(key.startswith("layer.conv2d") for row in report.rows for key in row.layers)
    assert sum(row.ms for row in report.rows) == pytest.approx(report.total_ms.median)
    assert report.total_ms.p10 <= report.total_ms.median <= report.total_ms.p90


@pytest.mark.parametrize("size", [3, 200, 0.5, 0.999])
def test_broken_files_are_refused(small: tuple[Path, Tensor, Tensor, Artifact], folder: Path, size: float):
    whole = small[0].read_bytes()
    broken = folder / "broken.so"
    broken.write_bytes(whole[: int(size * len(whole)) if size < 1 else int(size)])
    with pytest.raises(EdgeqError, match="tvm"):
        load(broken)
    with pytest.raises(EdgeqError, match="there is no"):
        load(folder / "missing.so")


def test_a_wrong_input_is_named(small: tuple[Path, Tensor, Tensor, Artifact]):
    with pytest.raises(EdgeqError, match="takes other inputs"):
        load(small[0])([torch.zeros(1, 2, 3)])


def test_a_library_exported_again_is_the_new_one(tmp_path: Path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5)).eval()
        batches = [(torch.randn(1, 3, 6, 6),) for _ in range(3)]
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        model = edgeq.quantize(network, example_inputs=batches[0], calibration=batches, output=tmp_path / "out")
        answers = load(edgeq.export(model, "tvm").path)(batches[0])
        assert torch.equal(answers[0], model.simulate(batches[0], "tvm")[0])


def test_the_pool_has_the_threads_asked_for():
    import tvm

    for threads in (1, 2, 1, 2):
        use_threads(threads)
        assert tvm.get_global_func("runtime.NumThreads")() == threads


@pytest.mark.parametrize("name", backends.VARIANTS)
def test_what_is_compiled_for_another_machine_says_how_it_runs(name: str, folder: Path):
    variant = backends.backend(name)
    assert variant.target is TARGET and "--device" in backends.runs_here(name)
    for verb in (variant.load, variant.profile):
        with pytest.raises(EdgeqError, match=f"{name} is compiled for other machines than this one: add --device"):
            verb(folder / "model.so")


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 6)), min_size=1, max_size=30))
def test_values_that_live_at_once_share_no_memory(wanted: list[tuple[int, int]]):
    arena = bundle._Arena()
    held = [(arena.take(size, step, step + life), size, step, step + life) for step, (size, life) in enumerate(wanted)]
    for i, (place, size, _, last) in enumerate(held):
        assert place % bundle.ALIGNMENT == 0 and place + size <= arena.size
        for other, its_size, first, _ in held[i + 1 :]:
            assert first > last or other >= place + size or place >= other + its_size
    assert arena.size <= sum(-(-size // bundle.ALIGNMENT) * bundle.ALIGNMENT for size, _ in wanted)


@pytest.mark.parametrize(("name", "package"), [("tvm-arm64", "gcc-aarch64-linux-gnu"), ("tvm-hexagon", "clang-16")])
def test_a_missing_cross_compiler_is_named_before_anything_is_compiled(
    name: str, package: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    net, x, _ = convolutions((9, 8), 4, 6, 3, 1, 1, 3)
    with pytest.raises(EdgeqError, match=f"which is not installed: apt-get install {package}"):
        lower(torch.export.export(net, (x,)), folder / "new", target=name)
    assert not (folder / "new").exists()


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
