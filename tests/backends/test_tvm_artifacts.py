"""TVM's artefacts: float networks in them, their bytes and profiles, threads, memory, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from int8_branches import convolutions
from torch import Tensor, nn

import edgeq
from edgeq import backends
from edgeq.backends.tvm import bundle
from edgeq.backends.tvm.inspection import placement
from edgeq.backends.tvm.lower import lower
from edgeq.backends.tvm.profile import profile
from edgeq.backends.tvm.run import load, use_threads
from edgeq.backends.tvm.target import TARGET
from edgeq.backends.tvm.tir import flat, prim_func
from edgeq.spec import Artifact, EdgeqError

torch.set_num_threads(1)


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


def test_a_float_transformer_runs_as_torch_does(tmp_path: Path):
    net = Transformer().eval()
    inputs = (torch.randint(0, 50, (2, 7)), (torch.arange(7) < 5).float().expand(2, 7).contiguous())
    artifact = lower(torch.export.export(net, inputs), tmp_path)
    integers = [row.reason for row in artifact.coverage if row.status != "float island"]
    assert integers == ["integer or logical values"]  # the tokens on their way to the embedding
    got = load(artifact.path)(inputs)
    for result, wanted in zip(got, net(*inputs).values(), strict=True):
        torch.testing.assert_close(result, wanted, atol=2e-5, rtol=1e-4)


def test_a_float_network_with_convolutions_runs_as_torch_does(tmp_path: Path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 18, 3, 2, 1), nn.ReLU6(), nn.Conv2d(18, 18, 5, 1, 2, groups=18), nn.SiLU(), nn.Conv2d(18, 7, 1),
        nn.ConvTranspose2d(7, 5, 2, 2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2),
        nn.Flatten(), nn.Linear(5 * 22 * 32, 10),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 22, 31)
    artifact = lower(torch.export.export(net, (x,)), tmp_path)
    torch.testing.assert_close(load(artifact.path)([x])[0], net(x), atol=2e-5, rtol=1e-4)


def test_an_operator_tvm_lacks_is_named(tmp_path: Path):
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).real

    program = torch.export.export(Odd(), (torch.randn(4),))
    keys = {n.name: f"head/{n.name}" for n in program.graph.nodes}
    with pytest.raises(EdgeqError, match=r"TVM's importer has no \w*fft\w* \(head/.*; rewrite it"):
        lower(program, tmp_path, layers=keys)
    assert not list(tmp_path.iterdir())


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


def test_same_program_same_bytes(small: tuple[Path, Tensor, Tensor, Artifact], tmp_path: Path):
    net, x, _ = convolutions((9, 8), 4, 6, 3, 1, 1, 3)
    program = torch.export.export(net, (x,))
    keys = {n.name: f"layer.{n.name}" for n in program.graph.nodes if n.op == "call_function"}
    assert lower(program, tmp_path, layers=keys).path.read_bytes() == small[0].read_bytes()


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
def test_broken_files_are_refused(small: tuple[Path, Tensor, Tensor, Artifact], tmp_path: Path, size: float):
    whole = small[0].read_bytes()
    broken = tmp_path / "broken.so"
    broken.write_bytes(whole[: int(size * len(whole)) if size < 1 else int(size)])
    with pytest.raises(EdgeqError, match="tvm"):
        load(broken)
    with pytest.raises(EdgeqError, match="there is no"):
        load(tmp_path / "missing.so")


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
def test_what_is_compiled_for_another_machine_says_how_it_runs(name: str, tmp_path: Path):
    variant = backends.backend(name)
    assert variant.target is TARGET and "--device" in backends.runs_here(name)
    for verb in (variant.load, variant.profile):
        with pytest.raises(EdgeqError, match=f"{name} is compiled for other machines than this one: add --device"):
            verb(tmp_path / "model.so")


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
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    net, x, _ = convolutions((9, 8), 4, 6, 3, 1, 1, 3)
    with pytest.raises(EdgeqError, match=f"which is not installed: apt-get install {package}"):
        lower(torch.export.export(net, (x,)), tmp_path / "new", target=name)
    assert not (tmp_path / "new").exists()
