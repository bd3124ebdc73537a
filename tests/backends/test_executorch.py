"""ExecuTorch: every operator against NumPy integers, the file against its own description, and what goes wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import edgeq
from edgeq.backends.executorch.lower import lower
from edgeq.backends.executorch.profile import profile
from edgeq.backends.executorch.run import load
from edgeq.graph.integer import read
from edgeq.graph.simulate import simulate
from edgeq.spec import EdgeqError, QuantPlan

torch.set_num_threads(1)
qd = torch.ops.quantized_decomposed
f32 = np.float32
Grid = tuple[float, int]


def q(x: Tensor, grid: Grid) -> Tensor:
    return qd.quantize_per_tensor.default(x, *grid, -128, 127, torch.int8)


def dq(x: Tensor, grid: Grid) -> Tensor:
    return qd.dequantize_per_tensor.default(x, *grid, -128, 127, torch.int8)


class Weight(nn.Module):
    """int8 weights with one scale a channel and a bias on its int32 grid."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, ...], axis: int, in_scale: float) -> None:
        super().__init__()
        count = shape[axis]
        scales = (rng.integers(1, 40, count) * 2.0**-11).astype(f32)
        bias = rng.integers(-4000, 4000, count)
        self.axis, self.integers, self.bias_integers, self.scales = axis, rng.integers(-127, 128, shape), bias, scales
        self.register_buffer("q", torch.tensor(self.integers, dtype=torch.int8))
        self.register_buffer("s", torch.tensor(scales))
        self.register_buffer("z", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("bias", torch.tensor((bias * scales.astype(np.float64) * in_scale).astype(f32)))

    def forward(self) -> Tensor:
        return qd.dequantize_per_channel.default(self.q, self.s, self.z, self.axis, -127, 127, torch.int8)


# ---------------------------------------------------------------- the oracle: NumPy, integers and float32


def np_conv(x: np.ndarray, w: np.ndarray, stride: int, pad: int, dilation: int, groups: int) -> np.ndarray:
    """Σ x·w in int64 by taps; x [N, C, H, W] already centred on its zero point."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    n, _, height, width = x.shape
    out_c, per_group, kh, kw = w.shape
    rows, cols = ((size - dilation * (k - 1) - 1) // stride + 1 for size, k in ((height, kh), (width, kw)))
    total = np.zeros((n, out_c, rows, cols), np.int64)
    for o in range(out_c):
        first = o // (out_c // groups) * per_group
        for i in range(kh):
            for j in range(kw):
                top, left = i * dilation, j * dilation
                window = x[:, :, top : top + stride * rows : stride, left : left + stride * cols : stride]
                part = window[:, first : first + per_group]
                total[:, o] += np.einsum("nchw,c->nhw", part, w[o, :, i, j])
    return total


def np_transposed(x: np.ndarray, w: np.ndarray, stride: int, pad: int) -> np.ndarray:
    n, _, height, width = x.shape
    _, out_c, kh, kw = w.shape
    full = np.zeros((n, out_c, (height - 1) * stride + kh, (width - 1) * stride + kw), np.int64)
    for y in range(height):
        for k in range(width):
            window = full[:, :, y * stride : y * stride + kh, k * stride : k * stride + kw]
            window += np.einsum("nc,coij->noij", x[:, :, y, k], w)
    return full[:, :, pad : full.shape[2] - pad, pad : full.shape[3] - pad]


def np_clip(y: np.ndarray, out: Grid, clip: tuple[float, float] | None) -> np.ndarray:
    low, high = -128, 127
    if clip is not None:
        low, high = (int(np.rint(np.clip(f32(b) / f32(out[0]) + f32(out[1]), -128, 127))) for b in clip)
    return np.clip(y, low, high)


def np_scaled(total: np.ndarray, scale: Any, out: Grid, clip: tuple[float, float] | None = None) -> np.ndarray:
    return np_clip(np.rint(total.astype(f32) * scale) + out[1], out, clip)


def np_add(a: np.ndarray, b: np.ndarray, ga: Grid, gb: Grid, out: Grid, clip: tuple[float, float] | None) -> np.ndarray:
    ra, rb = f32(ga[0]) / f32(out[0]), f32(gb[0]) / f32(out[0])
    shift = 20 - math.floor(math.log2(max(ra, rb)))
    ma, mb = round(float(ra) * 2**shift), round(float(rb) * 2**shift)
    total = (a - ga[1]) * ma + (b - gb[1]) * mb + 2 ** (shift - 1)
    return np_clip(np.floor_divide(total, 2**shift) + out[1], out, clip)


def np_quantize(x: np.ndarray, grid: Grid) -> np.ndarray:
    return np.clip(np.rint(x * (f32(1) / f32(grid[0]))) + grid[1], -128, 127).astype(np.int64)


# ---------------------------------------------------------------- random operators

RESCALED = ", rescaled"  # behind a kind that moves integers: its output has another grid than its input


class Branch(nn.Module):
    """One operator from the network's input (and a second one) to a quantized output, and its NumPy value."""

    run: Callable[[Tensor, Tensor], Tensor]
    oracle: Callable[[np.ndarray, np.ndarray], np.ndarray]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.run(x, y)


CLIPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float] | None]] = {
    "none": (lambda t: t, None),
    "relu": (F.relu, (0.0, math.inf)),
    "relu6": (F.relu6, (0.0, 6.0)),
    "clamp": (lambda t: torch.clamp(t, -0.5, 1.25), (-0.5, 1.25)),
}


def random_grid(rng: np.random.Generator, factor: float = 1.0) -> Grid:
    """A scale that makes ties likely (a small multiple of a power of two) or one that does not."""
    scale = rng.integers(1, 16) * 2.0 ** -int(rng.integers(4, 8)) if rng.random() < 0.6 else rng.uniform(0.02, 0.2)
    return float(f32(scale * factor)), int(rng.integers(-100, 100))


def weighted(rng: np.random.Generator, kind: str) -> Branch:
    branch, a, out = Branch(), random_grid(rng), random_grid(rng, 8.0)
    act, clip = CLIPS[str(rng.choice(list(CLIPS)))]
    stride, pad, dilation = (int(rng.integers(low, 3)) for low in (1, 0, 1))
    k = int(rng.integers(1, 4))
    groups = {"depthwise": 4, "grouped": 2}.get(kind, 1)
    square = (4 if groups > 1 else 5, 4 // groups, k, k)
    shape = {"linear": (5, 6), "conv1d": (5, 4, k), "transposed": (4, 5, 4, 4)}.get(kind, square)
    axis = 1 if kind == "transposed" else 0
    weight = branch.weight = Weight(rng, shape, axis, a[0])
    conv = (stride, pad, dilation, groups)

    def run(x: Tensor, y: Tensor) -> Tensor:
        t, w, b = dq(q(x, a), a), weight(), weight.bias
        if kind == "linear":
            t = F.linear(t, w, b)
        elif kind == "conv1d":
            t = F.conv1d(dq(q(t.reshape(1, 4, 36), a), a), w, b, *conv)
        elif kind == "transposed":
            t = F.conv_transpose2d(t, w, b, 2, 1)
        else:
            t = F.conv2d(t, w, b, *conv)
        return q(act(t), out)

    def oracle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        centred, w = np_quantize(x, a) - a[1], weight.integers
        if kind == "linear":
            total, spread = centred @ w.T, (-1,)
        elif kind == "conv1d":
            row = np.pad(centred.reshape(1, 4, 1, 36), ((0, 0), (0, 0), (0, 0), (pad, pad)))
            wide = np_conv(row, w[:, :, None, :], 1, 0, 1, 1) if dilation == 1 else None
            if wide is None:
                apart = np.zeros((*w.shape[:2], dilation * (k - 1) + 1), np.int64)
                apart[:, :, ::dilation] = w
                wide = np_conv(row, apart[:, :, None, :], 1, 0, 1, 1)
            total, spread = wide[:, :, 0, ::stride], (1, -1, 1)
        elif kind == "transposed":
            total, spread = np_transposed(centred, w, 2, 1), (1, -1, 1, 1)
        else:
            total, spread = np_conv(centred, w, *conv), (1, -1, 1, 1)
        scale = f32(a[0]) * weight.scales / f32(out[0])
        return np_scaled(total + weight.bias_integers.reshape(spread), scale.reshape(spread), out, clip)

    branch.run, branch.oracle = run, oracle
    return branch


def elementwise(rng: np.random.Generator, kind: str) -> Branch:
    branch, a, b = Branch(), random_grid(rng), random_grid(rng)
    out = random_grid(rng)
    act, clip = CLIPS[str(rng.choice(list(CLIPS)))]
    op = {"add": torch.add, "sub": torch.sub, "mul": torch.mul}[kind]

    def oracle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        left, right = np_quantize(x, a), np_quantize(y, b)
        if kind == "mul":
            scale = f32(a[0]) * f32(b[0]) / f32(out[0])
            return np_scaled((left - a[1]) * (right - b[1]), scale, out, clip)
        if kind == "sub":
            return np_add(left, 2 * b[1] - right, a, b, out, clip)
        return np_add(left, right, a, b, out, clip)

    branch.run = lambda x, y: q(act(op(dq(q(x, a), a), dq(q(y, b), b))), out)
    branch.oracle = oracle
    return branch


def averaging(rng: np.random.Generator, kind: str) -> Branch:
    branch, a, out = Branch(), random_grid(rng), random_grid(rng, 0.25)
    pad = int(rng.integers(0, 2))
    run = {
        "mean": lambda t: t.mean([2, 3], keepdim=True),
        "mean_flat": lambda t: t.mean([-1, -2]),
        "adaptive": lambda t: F.adaptive_avg_pool2d(t, 1),
        "avg_pool": lambda t: F.avg_pool2d(t, 3, 2, pad),
    }[kind]

    def oracle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        raw = np_quantize(x, a)
        if kind == "avg_pool":
            ones = np.ones((4, 1, 3, 3), np.int64)
            return np_scaled(np_conv(raw - a[1], ones, 2, pad, 1, 4), f32(a[0]) * (f32(1) / f32(9)) / f32(out[0]), out)
        scale = f32(a[0]) / f32(out[0]) * (f32(1) / f32(36))
        offset = f32(f32(out[1]) - f32(36 * a[1]) * scale)
        total = raw.sum((2, 3), keepdims=kind != "mean_flat").astype(f32)
        return np.clip(np.rint(total * scale + offset), -128, 127)

    branch.run, branch.oracle = (lambda x, y: q(run(dq(q(x, a), a)), out)), oracle
    return branch


def np_requantize(x: np.ndarray, grid: Grid, out: Grid) -> np.ndarray:
    return x if grid == out else np_quantize((x - grid[1]).astype(f32) * f32(grid[0]), out)


def moving(rng: np.random.Generator, kind: str) -> Branch:
    branch, a = Branch(), random_grid(rng)
    out = random_grid(rng) if kind.endswith(RESCALED) else a
    zero = out[1]
    torch_op: Callable[[Tensor], Tensor]
    torch_op, numpy_op = {
        "reshape": (lambda t: t.reshape(1, 4, 36), lambda t: t.reshape(1, 4, 36)),
        "unsqueeze": (lambda t: t.unsqueeze(1), lambda t: t[:, None]),
        "permute": (lambda t: t.permute(0, 2, 3, 1), lambda t: t.transpose(0, 2, 3, 1)),
        "slice": (lambda t: t[:, 1:3], lambda t: t[:, 1:3]),
        "pad": (
            lambda t: F.pad(t, (1, 0, 2, 1)),
            lambda t: np.pad(t, ((0, 0), (0, 0), (2, 1), (1, 0)), constant_values=zero),
        ),
        "upsample": (lambda t: F.interpolate(t, scale_factor=(3.0, 2.0)), lambda t: t.repeat(3, 2).repeat(2, 3)),
        "max_pool": (
            lambda t: F.max_pool2d(t, 2),
            lambda t: t.reshape(1, 4, 3, 2, 3, 2).max((3, 5)),
        ),
        "relu6": (F.relu6, lambda t: np_clip(t, out, (0.0, 6.0))),
        "clamp": (lambda t: torch.clamp(t, min=-0.5), lambda t: np_clip(t, out, (-0.5, math.inf))),
    }[kind.removesuffix(RESCALED)]
    branch.run = lambda x, y: q(torch_op(dq(q(x, a), a)), out)
    branch.oracle = lambda x, y: numpy_op(np_requantize(np_quantize(x, a), a, out))
    return branch


def joining(rng: np.random.Generator, kind: str) -> Branch:
    branch, a, out = Branch(), random_grid(rng), random_grid(rng)
    joined = out if kind.endswith(RESCALED) else a

    def oracle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if kind.startswith("cat"):
            return np.concatenate([np_requantize(np_quantize(t, a), a, joined) for t in (x, y)], 1)
        return np_requantize(np_quantize(x, a), a, out)

    branch.run = {
        "cat": lambda x, y: q(torch.cat([dq(q(x, a), a), dq(q(y, a), a)], 1), joined),
        "requantize": lambda x, y: q(dq(q(x, a), a), out),
    }[kind.removesuffix(RESCALED)]
    branch.oracle = oracle
    return branch


MOVES = ("reshape", "unsqueeze", "permute", "slice", "pad", "upsample", "max_pool", "relu6", "clamp")
MAKERS: dict[str, Callable[[np.random.Generator, str], Branch]] = {
    **dict.fromkeys(("conv", "depthwise", "grouped", "conv1d", "transposed", "linear"), weighted),
    **dict.fromkeys(("add", "sub", "mul"), elementwise),
    **dict.fromkeys(("mean", "mean_flat", "adaptive", "avg_pool"), averaging),
    **dict.fromkeys((*MOVES, *(kind + RESCALED for kind in MOVES)), moving),
    **dict.fromkeys(("cat", f"cat{RESCALED}", "requantize"), joining),
}


class Net(nn.Module):
    """Many one-operator networks in one program: lowering is what takes time."""

    def __init__(self, branches: list[Branch]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(branch(x, y) for branch in self.branches)


@pytest.mark.parametrize("family", [weighted, elementwise, averaging, moving, joining])
@settings(max_examples=1, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking a seed says nothing
@given(seed=st.integers(0, 2**32 - 1))
def test_every_operator_gives_the_bytes_of_numpy_and_of_the_simulation(
    tmp_path_factory: pytest.TempPathFactory, family: Callable[[np.random.Generator, str], Branch], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    names = [name for name, maker in MAKERS.items() if maker is family]
    branches = [MAKERS[name](rng, name) for name in names]
    x, y = (torch.tensor((rng.integers(-600, 600, (1, 4, 6, 6)) * 2.0**-6).astype(f32)) for _ in range(2))
    program = torch.export.export(Net(branches).eval(), (x, y))
    artifact = lower(program, tmp_path_factory.mktemp("net"))
    outputs = load(artifact.path)((x, y))
    simulated = simulate(read(program), (x, y), "xnnpack")
    for name, branch, out, sim in zip(names, branches, outputs, simulated, strict=True):
        expected = branch.oracle(x.numpy(), y.numpy()).reshape(out.shape)
        assert np.array_equal(out.numpy(), expected), name
        assert torch.equal(sim, out), name
    assert {row.status for row in artifact.coverage if not row.inserted} == {"integer"}
    assert not any("pieces" in note for note in artifact.notes)


def small() -> nn.Module:
    rng = np.random.default_rng(0)
    a, last = (0.05, 3), (0.1, 0)

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.alone = Weight(rng, (8, 3, 3, 3), 0, a[0]), Weight(rng, (32, 64), 0, 1.0)

        def forward(self, x: Tensor) -> Tensor:
            t = q(F.relu(F.conv2d(dq(q(x, a), a), self.w(), self.w.bias)), (0.1, 0))
            both = q(torch.cat([dq(t, (0.1, 0)), dq(t, (0.1, 0))], 1), last)
            return F.gelu(F.linear(dq(both, last).flatten(2)[:, :, :64], self.alone(), self.alone.bias))

    return Small().eval()


@pytest.fixture(scope="module")
def artifact_and_input(tmp_path_factory: pytest.TempPathFactory) -> Any:
    x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))  # none of its sums is near a tie
    program = torch.export.export(small(), (x,))
    return lower(program, tmp_path_factory.mktemp("small"), layers={"conv2d": "stem/conv2d"}), x, program


def test_weights_alone_stay_int8_and_float_operators_say_so(artifact_and_input: Any) -> None:
    artifact, x, program = artifact_and_input
    (out,) = load(artifact.path)((x,))
    torch.testing.assert_close(out, program.module()(x), rtol=1e-4, atol=1e-4)
    rows = {row.kind: row for row in artifact.coverage}
    assert rows["conv2d"].status == "integer" and rows["conv2d"].layers == ("stem/conv2d",)
    assert rows["gelu"].status == "float island" and "float" in rows["gelu"].reason
    assert any("int8" in row.reason for row in artifact.coverage if row.kind == "linear")
    stored = bytes(program.state_dict.get("alone.q", dict(program.named_buffers())["alone.q"]).numpy())
    assert stored in artifact.path.read_bytes()


def test_the_same_program_gives_the_same_bytes(artifact_and_input: Any, tmp_path: Path) -> None:
    artifact, _, program = artifact_and_input
    assert lower(program, tmp_path).path.read_bytes() == artifact.path.read_bytes()


def test_profile_rows_carry_the_names_of_the_coverage_table(artifact_and_input: Any) -> None:
    artifact, x, _ = artifact_and_input
    report = profile(artifact, (x,), warmup=1, runs=8)
    assert 0 < report.total_ms.p10 <= report.total_ms.median <= report.total_ms.p90
    assert {row.name for row in artifact.coverage if not row.inserted} <= {row.name for row in report.rows}
    assert sum(row.ms for row in report.rows) == pytest.approx(report.total_ms.median)


def test_a_cut_or_foreign_file_is_refused(artifact_and_input: Any, tmp_path: Path) -> None:
    data = artifact_and_input[0].path.read_bytes()
    for name, content, words in (("cut", data[: len(data) // 2], "cut off"), ("foreign", b"PK" * 99, "no ExecuTorch")):
        path = tmp_path / f"{name}.pte"
        path.write_bytes(content)
        with pytest.raises(EdgeqError, match=words):
            load(path)


def test_an_operator_without_a_kernel_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sort(x, -1)[0]

    x = torch.randn(1, 3, 8)
    artifact = lower(torch.export.export(Sorted(), (x,)), tmp_path)
    with pytest.raises(EdgeqError, match=r"no kernel for aten::sort\.values; rewrite that operator"):
        load(artifact.path)((x,))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Linear(5, 5), nn.Conv3d(3, 2, 3, padding=1)],
        [nn.Linear(5, 5), nn.ConstantPad1d(1, 0.0), nn.ELU()],
        [nn.Flatten(2), nn.Conv1d(3, 4, 3, 2, 1), nn.ConvTranspose1d(4, 2, 3, 2, 1, 1, dilation=2), nn.ELU()],
        [nn.Flatten(2), nn.ConvTranspose1d(3, 6, 4, groups=3), nn.Conv1d(6, 4, 3)],
    ],
    ids=["conv3d", "pad", "transposed behind integers", "transposed before integers"],
)
def test_float_islands_between_integers_run_and_equal_the_network(layers: list[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*layers).eval()
    batches = [(torch.randn(1, 3, 4, 4, 5),) for _ in range(3)]
    made = edgeq.quantize(network, example_inputs=batches[0], calibration=batches, output=tmp_path / "out")
    (out,) = load(edgeq.export(made, "executorch").path)(batches[0])
    want = network(*batches[0])
    assert float((out - want).square().sum() / want.square().sum()) < 1e-2


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        ([nn.Conv1d(3, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3)], "0"),
        ([nn.Conv1d(3, 4, 3), nn.Conv1d(4, 4, 3, 2, 2, dilation=2, groups=2)], "1"),
        ([nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(), nn.Linear(8, 2)], "1"),
        ([nn.Linear(8, 8), nn.ConvTranspose1d(3, 4, 3, 2), nn.Linear(17, 3)], "1"),
    ],
    ids=["before integers", "behind integers", "between integers", "transposed"],
)
def test_a_convolution_of_one_axis_kept_in_float_runs_in_the_delegate(
    layers: list[nn.Module], kept: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(*layers).eval()
    batches = [(torch.randn(1, 3, 8),) for _ in range(3)]
    options = {"calibration": batches, "output": tmp_path / "out", "keep_float": [kept]}
    artifact = edgeq.export(edgeq.quantize(network, example_inputs=batches[0], **options), "executorch")
    (out,), want = load(artifact.path)(batches[0]), network(*batches[0])
    assert float((out - want).square().sum() / want.square().sum()) < 1e-2
    assert not [row for row in artifact.coverage if "not delegated" in (row.reason or "")]


def test_a_linear_layer_of_int8_weights_alone_stands_behind_integers(tmp_path: Path) -> None:
    """Its activation is dequantized before it, and its result stays float: no static kernel, and none of ExecuTorch's own."""

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.body(x)).mean((2, 3)))

    torch.manual_seed(0)
    batches = [(torch.randn(1, 3, 24, 24),) for _ in range(3)]
    plan = QuantPlan("executorch", "minmax", {"head/linear": "w8"}, "w8a8")
    model = edgeq.quantize(
        Headed().eval(), example_inputs=batches[0], calibration=batches, plan=plan, output=tmp_path / "headed"
    )
    artifact = edgeq.export(model, "executorch")
    rows = [row for row in artifact.coverage if row.layers]
    assert [row.status for row in rows if row.layers == ("body/conv2d", "relu")] == ["integer"]
    head = [row for row in rows if row.layers == ("head/linear",)]
    assert {row.status for row in head} == {"float island"} and any("stay int8" in row.reason for row in head)
    predict = load(artifact.path)
    for batch in batches:
        assert torch.allclose(predict(batch)[0], model.simulate(batch, "xnnpack")[0], atol=1e-5)
