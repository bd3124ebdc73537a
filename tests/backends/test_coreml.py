"""Core ML packages: what is stored, how it is described, and that it computes what the simulation says."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

import edgeq
from edgeq.backends.coreml import profile, run
from edgeq.backends.coreml.lower import lower
from edgeq.backends.coreml.package import Program, coremltools, read
from edgeq.graph.integer import DEQUANTIZE, DEQUANTIZE_CHANNEL, QUANTIZE
from edgeq.graph.integer import read as read_integers
from edgeq.graph.simulate import simulate
from edgeq.spec import Artifact, EdgeqError


def q(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return QUANTIZE(x, np.float32(scale).item(), zero_point, -128, 127, torch.int8)  # type: ignore[no-any-return] # torch.ops are Any


def dq(x: Tensor, scale: float, zero_point: int) -> Tensor:
    return DEQUANTIZE(x, np.float32(scale).item(), zero_point, -128, 127, torch.int8)  # type: ignore[no-any-return] # torch.ops are Any


class Weight(nn.Module):
    """int8 weights per channel with a bias on the grid in_scale × weight scale."""

    def __init__(self, *shape: int, axis: int = 0, in_scale: float = 1.0) -> None:
        super().__init__()
        weight = torch.randn(shape)
        scale = weight.abs().amax([i for i in range(weight.dim()) if i != axis]) / 127
        along = [-1 if i == axis else 1 for i in range(weight.dim())]
        self.axis = axis
        self.integers = nn.Buffer(torch.round(weight / scale.view(along)).to(torch.int8))
        self.scale = nn.Buffer(scale)
        self.zeros = nn.Buffer(torch.zeros(len(scale), dtype=torch.int64))
        unit = scale.double() * np.float32(in_scale).item()
        self.bias = nn.Buffer((torch.round(torch.randn(len(scale)) * 0.1 / unit) * unit).float())

    def forward(self) -> tuple[Tensor, Tensor]:
        real = DEQUANTIZE_CHANNEL(self.integers, self.scale, self.zeros, self.axis, -127, 127, torch.int8)
        return real, self.bias


class Mobile(nn.Module):
    """Depthwise block with residual add, pooling, transposed convolution, concat, upsampling, mean, reshape, linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.depthwise = Weight(8, 3, 3, 3, in_scale=0.031), Weight(8, 1, 3, 3, in_scale=0.047)
        self.point, self.up = Weight(8, 8, 1, 1, in_scale=0.071), Weight(8, 4, 2, 2, axis=1, in_scale=0.129)
        self.head = Weight(10, 12, in_scale=0.103)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = q(F.relu6(F.conv2d(dq(q(x, 0.031, 3), 0.031, 3), *self.stem(), 2, 1)), 0.047, -128)
        b = q(F.hardtanh(F.conv2d(dq(a, 0.047, -128), *self.depthwise(), 1, 1, 1, 8), 0, 6), 0.071, -128)
        c = q(F.conv2d(dq(b, 0.071, -128), *self.point()), 0.113, 5)
        d = q(dq(c, 0.113, 5) + dq(a, 0.047, -128), 0.129, -7)
        pooled = q(F.max_pool2d(dq(d, 0.129, -7), 3, 2, 1), 0.129, -7)
        up = q(F.conv_transpose2d(dq(pooled, 0.129, -7), *self.up(), 2), 0.201, 1)
        wide = q(torch.cat([dq(up, 0.201, 1), dq(q(dq(d, 0.129, -7), 0.201, 1), 0.201, 1)], 1), 0.201, 1)
        big = q(F.interpolate(dq(wide, 0.201, 1), scale_factor=2.0, mode="nearest"), 0.201, 1)
        mean = q(dq(big, 0.201, 1).mean([2, 3]), 0.103, 1)
        flat = q(dq(mean, 0.103, 1).reshape(1, 12), 0.103, 1)
        logits = q(F.linear(dq(flat, 0.103, 1), *self.head()), 0.053, 0)
        return {"map": dq(wide, 0.201, 1), "logits": dq(logits, 0.053, 0)}


class Transformer(nn.Module):
    """Embedding, layer norm, quantized linears around a float attention and GELU; the last linear is weight-only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)
        self.qkv, self.out = Weight(48, 16, in_scale=0.03), Weight(16, 16, in_scale=0.04)
        self.widen, self.narrow, self.last = Weight(32, 16, in_scale=0.03), Weight(16, 32, in_scale=0.04), Weight(5, 16)

    def linear(self, x: Tensor, weight: Weight, scale: float) -> Tensor:
        return dq(q(F.linear(dq(q(x, scale, 2), scale, 2), *weight()), 0.11, 1), 0.11, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens))
        query, key, value = self.linear(x, self.qkv, 0.03).chunk(3, -1)
        mixed = torch.softmax(query @ key.transpose(1, 2) / 4, -1) @ value
        x = self.norm(x + self.linear(mixed, self.out, 0.04))
        x = x + self.linear(F.gelu(self.linear(x, self.widen, 0.03)), self.narrow, 0.04)
        return F.linear(x, *self.last())


class Function(nn.Module):
    """A module around a plain function."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> object:
        return self.function(*inputs)


def exported(network: nn.Module | Callable[..., object], *inputs: Tensor) -> ExportedProgram:
    module = network if isinstance(network, nn.Module) else Function(network)
    return torch.export.export(module.eval(), inputs)


@pytest.fixture(scope="module")
def mobile() -> ExportedProgram:
    return exported(Mobile(), torch.randn(1, 3, 16, 16))


@pytest.fixture(scope="module")
def transformer() -> ExportedProgram:
    return exported(Transformer(), torch.randint(0, 50, (1, 7)))


@pytest.fixture(scope="module")
def half(mobile: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The mobile network as it is written by default."""
    keys = {n.name: f"layer.{n.name}" for n in mobile.graph.nodes}
    return lower(mobile, tmp_path_factory.mktemp("half"), layers=keys)


@pytest.fixture(scope="module")
def single(mobile: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The mobile network as a float32 package."""
    return lower(mobile, tmp_path_factory.mktemp("single"), compute="fp32")


@pytest.fixture(scope="module")
def block(transformer: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The transformer block as a float32 package."""
    return lower(transformer, tmp_path_factory.mktemp("block"), compute="fp32")


def digests(path: Path) -> dict[str, str]:
    files = (f for f in path.rglob("*") if f.is_file())
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def weights(program: Program) -> list[Tensor]:
    names = [o.inputs["quantized_data"][0] for o in program.operations if "quantized_data" in o.inputs]
    return [w for w in (program.constants[name] for name in names) if isinstance(w, Tensor)]


@pytest.mark.parametrize(("package", "arithmetic"), [("single", "coreml"), ("half", "coreml_fp16")])
def test_a_mobile_network_equals_its_simulation_in_every_element(
    mobile: ExportedProgram, package: str, arithmetic: str, request: pytest.FixtureRequest
) -> None:
    predict, integers = run.load(request.getfixturevalue(package).path), read_integers(mobile)
    torch.manual_seed(5)
    for _ in range(6):
        x = torch.randn(1, 3, 16, 16) * 1.5
        wanted = simulate(integers, [x], arithmetic)
        for got, want, step in zip(predict([x]), wanted, (0.201, 0.053), strict=True):
            assert torch.equal(torch.round(got / step), torch.round(want / step))


def test_one_convolution_against_numpy_int64(tmp_path: Path) -> None:
    torch.manual_seed(2)
    weight = Weight(6, 4, 1, 1, in_scale=0.02)

    def network(x: Tensor) -> Tensor:
        return dq(q(F.conv2d(dq(q(x, 0.02, -9), 0.02, -9), *weight()), 0.015, 11), 0.015, 11)

    artifact = lower(exported(network, torch.randn(1, 4, 5, 5)), tmp_path, compute="fp32")
    integers = np.random.default_rng(0).integers(-128, 128, (1, 4, 5, 5))
    scale_in, scale_out = np.float64(np.float32(0.02)), np.float64(np.float32(0.015))
    units = weight.scale.numpy().astype(np.float64) * scale_in
    sums = np.einsum("oc,nchw->nohw", weight.integers.numpy()[:, :, 0, 0].astype(np.int64), integers + 9)
    sums += np.rint(weight.bias.numpy().astype(np.float64) / units).astype(np.int64)[None, :, None, None]
    steps = sums * (units / scale_out)[None, :, None, None]
    assert np.abs(steps - np.floor(steps) - 0.5).min() > 1e-5  # no tie for float noise to decide
    wanted = np.clip(np.rint(steps) + 11, -128, 127)
    (got,) = run.load(artifact.path)([torch.from_numpy(((integers + 9) * scale_in).astype(np.float32))])
    np.testing.assert_array_equal(np.rint(got.numpy() / scale_out) + 11, wanted)


def test_a_transformer_block(transformer: ExportedProgram, block: Artifact) -> None:
    predict, integers = run.load(block.path), read_integers(transformer)
    for seed in range(10):
        tokens = torch.randint(0, 50, (1, 7), generator=torch.Generator().manual_seed(seed))
        (want,) = simulate(integers, [tokens], "coreml")
        (got,) = predict([tokens])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert read(block.path).inputs[0].dtype == "int32"
    last = [row for row in block.coverage if row.kind == "linear"][-1]
    assert last.reason == "float activations; its weights are stored as int8"


def test_weights_stay_int8_in_the_package(
    mobile: ExportedProgram, half: Artifact, transformer: ExportedProgram, block: Artifact
) -> None:
    for program, artifact in ((mobile, half), (transformer, block)):
        wanted = [t for t in program.state_dict.values() if t.dtype == torch.int8]
        stored = weights(read(artifact.path))
        assert len(stored) == len(wanted)
        assert all(any(s.shape == w.shape and torch.equal(s, w) for s in stored) for w in wanted)


def test_weight_only_kinds_stay_int8(tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain, deep, up = Weight(16, 8, 3, 3), Weight(16, 1, 3, 3), Weight(16, 8, 2, 2, axis=1)
    line, wide = Weight(6, 12, 3), Weight(12, 16)

    def network(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        y = F.conv2d(F.conv2d(x, *plain(), 1, 1), *deep(), 1, 1, 1, 16)
        return F.conv_transpose2d(y, *up(), 2), F.conv1d(F.linear(t, *wide()).transpose(1, 2), *line())

    inputs = torch.randn(1, 8, 6, 6), torch.randn(2, 5, 16)
    artifact = lower(exported(network, *inputs), tmp_path, compute="fp32")
    for got, want in zip(run.load(artifact.path)(inputs), network(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert len(weights(read(artifact.path))) == 5
    assert {row.status for row in artifact.coverage} == {"float island"}


def test_coverage_tells_what_the_neural_engine_may_take(half: Artifact, single: Artifact) -> None:
    assert {row.status for row in half.coverage} == {"eligible"}
    assert sorted(row.kind for row in half.coverage) == sorted(
        ["conv"] * 3 + ["relu6", "clip", "add", "max_pool", "conv_transpose", "concat"]
        + ["upsample_nearest_neighbor", "reduce_mean", "linear"]
    )  # fmt: skip
    assert [row.layers for row in half.coverage if row.kind == "conv"] == [
        ("layer.conv2d",), ("layer.conv2d_1",), ("layer.conv2d_2",)
    ]  # fmt: skip
    assert all(row.layers for row in half.coverage)
    assert {row.status for row in single.coverage} == {"float island"} and "CPU and GPU only" in single.notes[0]


def test_the_same_program_gives_the_same_bytes_and_takes_the_old_one_s_place(
    mobile: ExportedProgram, half: Artifact, block: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "model.mlpackage"
    shutil.copytree(block.path, path)
    assert lower(mobile, tmp_path).path == path
    assert digests(path) == digests(half.path) != digests(block.path)
    assert set(digests(path)) == {
        "Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["model.mlpackage"]
    manifest = json.loads((path / "Manifest.json").read_text())
    assert manifest["rootModelIdentifier"] in manifest["itemInfoEntries"]


def test_names_of_inputs_and_outputs_are_the_program_s(half: Artifact, tmp_path: Path) -> None:
    saved = read(half.path)
    assert [v.name for v in saved.inputs] == ["x"] and [v.dtype for v in saved.inputs] == ["fp32"]
    assert saved.outputs == ("map", "logits")
    several = exported(lambda x, y: (x + y, [x - y, (x > y)]), torch.ones(3), torch.ones(3))
    artifact = lower(several, tmp_path)
    assert read(artifact.path).outputs == ("output", "output_1", "output_2")
    got = run.load(artifact.path)([torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 2.0)])
    assert [g.tolist() for g in got] == [[3, 4, 5], [-1, 0, 1], [0, 0, 1]]


class Named(nn.Module):
    """Outputs by names that no package can have, that two share once they are identifiers, and that an input has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor, gain: Tensor) -> dict[str, Any]:
        y = self.conv(image)
        return {
            "scores": y.mean((2, 3)) * gain,
            "boxes/raw": y,
            "boxes_raw": [y * 2, y * 3],
            "boxes_raw_0": y * 4,
            "image": y * 5,
        }


def test_outputs_have_the_user_s_names_in_the_package_and_beside_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(1, 3, 6, 6), torch.rand(1, 4)) for _ in range(3)]
    network = Named().eval()
    edgeq.quantize(network, example_inputs=batches[0], calibration=batches, output=tmp_path / "out")
    path = edgeq.export(tmp_path / "out", "coreml").path
    description = coremltools().utils.load_spec(str(path)).description
    wanted = ["scores", "boxes_raw", "boxes_raw_0", "boxes_raw_1", "boxes_raw_0_1", "image_1"]
    assert [o.name for o in description.output] == wanted and [i.name for i in description.input] == ["image", "gain"]
    told = json.loads((path.parent / "model.json").read_text())
    assert [o["name"] for o in told["outputs"]] == wanted and {o["dtype"] for o in told["outputs"]} == {"float32"}
    assert [tuple(i["shape"]) for i in told["inputs"]] == [(1, 3, 6, 6), (1, 4)]
    found = edgeq.verify(tmp_path / "out", to=["coreml"])["backends"]["coreml"]  # after somebody else has read it
    assert found["max_lsb"] < 0.1  # what is float here is float16 there
    got = run.load(path)(batches[0])
    for answer, own in zip(got, tree_leaves(network(*batches[0])), strict=True):
        assert (answer - own).abs().max() < 0.1 * own.abs().max()


def test_a_reshape_between_two_scales_keeps_both(tmp_path: Path) -> None:
    def network(x: Tensor) -> Tensor:
        return dq(q(dq(q(x, 0.05, 3), 0.05, 3).reshape(4, 6), 0.1, -2), 0.1, -2)

    artifact = lower(exported(network, torch.randn(2, 12)), tmp_path, compute="fp32")
    (got,) = run.load(artifact.path)([torch.full((2, 12), 2.16)])  # 43.2 steps of 0.05 are 2.15, 21.5 steps of 0.1
    assert got.shape == (4, 6) and got.unique().numel() == 1
    assert abs(got[0, 0].item() - 2.2) < 1e-6  # the tie goes to the even 22


def test_float_operators_that_coremltools_would_change(tmp_path: Path) -> None:
    x = torch.linspace(-3, 3, 25).reshape(5, 5)

    def network(x: Tensor) -> tuple[Tensor, ...]:
        return F.gelu(x, approximate="tanh"), F.gelu(x), 1 / (x.abs() + 0.01), F.hardtanh(x, 0, 2), x.clamp(min=1)

    artifact = lower(exported(network, x), tmp_path, compute="fp32")
    for got, want in zip(run.load(artifact.path)([x]), network(x), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-6)


def test_float_operators_of_cnns_and_detectors(tmp_path: Path) -> None:
    torch.manual_seed(4)
    group, batch, prelu = nn.GroupNorm(4, 8), nn.BatchNorm2d(8).eval(), nn.PReLU(8)
    up = nn.ConvTranspose2d(8, 4, 3, 2, 1, output_padding=1)

    def network(x: Tensor) -> tuple[Tensor, ...]:
        return (
            group(x), batch(x), prelu(x), up(x), F.hardswish(x), F.silu(x), F.leaky_relu(x, 0.2),
            F.adaptive_avg_pool2d(x, 1),
            F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
            F.interpolate(x, scale_factor=2, mode="bilinear"), F.interpolate(x, size=(13, 15), mode="nearest"),
            F.pixel_shuffle(x, 2), F.pad(x, (1, 2, 3, 1), mode="reflect"), x[:, 1:5:2], x.flip(2), x.amax(1),
            torch.where(x > 0, x, x * 2), *x.topk(3, -1), x.softmax(1), x.var(1), x.roll(1, 2),
        )  # fmt: skip

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([group, batch, prelu, up])

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return network(x)

    x = torch.randn(2, 8, 9, 11)
    artifact = lower(exported(Holder(), x), tmp_path, compute="fp32")
    for got, want in zip(run.load(artifact.path)([x]), network(x), strict=True):
        torch.testing.assert_close(got.to(want.dtype), want, rtol=1e-4, atol=1e-5)


def test_values_are_written_into_slices_and_places(tmp_path: Path) -> None:
    places = torch.tensor([[[2, 0, 1, 3]]]).expand(1, 5, 4)

    def network(x: Tensor) -> tuple[Tensor, ...]:
        part, row = x + 0, x + 0
        part[:, :2] = 0.5
        row[:, :, 1] = x[:, :, 0]
        return (
            part,
            row,
            x.scatter(2, places, x * 2),
            x.scatter_add(2, places, x * 3),
        )

    x = torch.randn(1, 5, 4)
    artifact = lower(exported(network, x), tmp_path, compute="fp32")
    for got, want in zip(run.load(artifact.path)([x]), network(x), strict=True):
        torch.testing.assert_close(got, want)


def test_pools_along_one_axis_have_their_window_as_stride(tmp_path: Path) -> None:
    def network(x: Tensor) -> tuple[Tensor, ...]:
        return F.max_pool1d(x, 2), F.avg_pool1d(x, 3)

    x = torch.randn(1, 4, 9)
    artifact = lower(exported(network, x), tmp_path, compute="fp32")
    for got, want in zip(run.load(artifact.path)([x]), network(x), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_narrow_integers_come_in_as_int32(dtype: torch.dtype, tmp_path: Path) -> None:
    def network(x: Tensor) -> Tensor:
        return x.float() / 255 - 0.5

    x = torch.tensor([[0, 1, 100, 127]], dtype=dtype)
    artifact = lower(exported(network, x), tmp_path, compute="fp32")
    assert [v.dtype for v in read(artifact.path).inputs] == ["int32"]
    torch.testing.assert_close(run.load(artifact.path)([x])[0], network(x))


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (nn.LSTM(16, 4, batch_first=True), "no conversion for the operator lstm"),
        (lambda t: torch.linalg.inv(t @ t.transpose(1, 2)), r"cannot convert operator linalg_inv \(head/linalg_inv\)"),
        (lambda t: {"a": t + 1, "b": t}, "output b is the input"),
        (lambda t: (lambda y: (y, y))(t + 1), "outputs output and output_1 are one tensor"),
    ],
)
def test_what_cannot_be_converted_is_named_and_leaves_nothing(
    network: nn.Module | Callable[..., object], sentence: str, tmp_path: Path
) -> None:
    program = exported(network, torch.randn(2, 5, 16))
    keys = {n.name: f"head/{n.name}" for n in program.graph.nodes}
    with pytest.raises(EdgeqError, match=sentence):
        lower(program, tmp_path / "out", layers=keys)
    assert not list(tmp_path.rglob("*"))


def test_there_is_no_latency_where_core_ml_does_not_run(monkeypatch: pytest.MonkeyPatch, half: Artifact) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert profile.profile(half.path, [torch.zeros(1, 3, 16, 16)]) is None


def test_what_is_eligible_goes_by_kind_and_not_by_neighbours(tmp_path: Path) -> None:
    """Curves between two quantized convolutions read and write int8, and are computed in float all the same."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 1), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 1),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    batch = (torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
    model = edgeq.quantize(edgeq.Task("curves", net.eval, lambda: batch, lambda: [batch]))
    rows = edgeq.export(model, "coreml", folder=tmp_path).coverage
    assert [r.kind for r in rows if r.status == "eligible"] == ["conv"] * 4
    placed = {s: {layer for r in rows if r.status == s for layer in r.layers} for s in ("table", "float island")}
    curves = {key for key in model.twin_labels.values() if "conv2d" not in key and "upsample" not in key}
    assert placed == {"table": curves, "float island": {k for k in model.twin_labels.values() if "upsample" in k}}
