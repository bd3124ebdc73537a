"""What other programs read of a `.tflite`: names, versions of operators, the oldest runtime, no bytes that nobody reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from torch import Tensor, nn

import edgeq
from edgeq.backends.litert.flatbuffer import schema
from edgeq.backends.litert.run import load


class Heads(nn.Module):
    """Outputs by name: integers, an upsampled map, floats."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.stem(x)
        up = F.interpolate(y, scale_factor=2, mode="nearest")
        return {"scores": y.mean((2, 3)), "mask": up, "turned": self.up(y), "odds": torch.exp(y)}


def exported(network: nn.Module, shape: tuple[int, ...], folder: Path, **options: Any) -> tuple[Any, Any, Path]:
    """A network's quantized model, its `.tflite` as a schema object, and the file."""
    torch.manual_seed(0)
    batches = [(torch.randn(shape),) for _ in range(3)]
    model = edgeq.quantize(network.eval(), example_inputs=batches[0], calibration=batches, output=folder, **options)
    path = edgeq.export(model, "litert").path
    return model, schema().ModelT.InitFromPackedBuf(path.read_bytes(), 0), path


def test_names_versions_and_the_oldest_runtime(tmp_path: Path) -> None:
    model, file, path = exported(Heads(), (1, 3, 6, 6), tmp_path / "heads")
    graph, signature = file.subgraphs[0], file.signatureDefs[0]
    wanted = [b"scores", b"mask", b"turned", b"odds"]
    assert [m.name for m in signature.outputs] == wanted
    assert [graph.tensors[int(i)].name for i in graph.outputs] == wanted
    assert [graph.tensors[m.tensorIndex].name for m in signature.outputs] == wanted
    codes = schema().BuiltinOperator
    versions = {c.builtinCode: c.version for c in file.operatorCodes}
    assert versions[codes.TRANSPOSE_CONV] == 3  # a bias and no activation; 4 would ask for runtime 2.13
    assert versions[codes.RESIZE_NEAREST_NEIGHBOR] == 3
    told = {m.name: bytes(file.buffers[m.buffer].data) for m in file.metadata}
    assert told[b"min_runtime_version"] == b"2.3.0".ljust(16, b"\0")
    x = torch.randn(1, 3, 6, 6)
    scale, zero_point = model.inputs[0].qparams.scale[0], model.inputs[0].qparams.zero_point[0]
    on_grid = (torch.round(x / scale).clamp(-128 - zero_point, 127 - zero_point)) * scale
    for kernels in ("xnnpack", "builtin", "reference"):
        got = load(path, kernels=kernels)([on_grid])
        assert [tuple(t.shape) for t in got] == [(1, 8), (1, 8, 12, 12), (1, 4, 12, 12), (1, 8, 6, 6)]
        # half pixel centres pick the pixels that torch does: every pixel of 2×2 blocks is the same
        assert torch.equal(got[1][..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2), got[1])


@pytest.mark.parametrize("layer", [nn.Linear(96, 96), nn.Conv2d(16, 64, 3)])
def test_files_of_fewer_bits_are_smaller_and_hold_no_buffer_that_nobody_reads(layer: nn.Module, tmp_path: Path) -> None:
    shape = {"Linear": (1, 96), "Conv2d": (1, 16, 8, 8)}[type(layer).__name__]
    sizes = {}
    for precision in ("fp32", "w8", "w8a8"):
        _, file, path = exported(nn.Sequential(layer, nn.ReLU()), shape, tmp_path / precision, precision=precision)
        sizes[precision] = path.stat().st_size
        read = {t.buffer for graph in file.subgraphs for t in graph.tensors} | {m.buffer for m in file.metadata}
        assert read | {0} == set(range(len(file.buffers)))
    weights = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
    saved = (
        2 * weights if isinstance(layer, nn.Linear) else 0
    )  # convolutions have no int8 weights beside float kernels here
    assert sizes["w8"] <= sizes["fp32"] - saved, sizes
    assert sizes["w8a8"] < sizes["fp32"] - 2 * weights, sizes


def test_what_stands_beside_the_file_is_what_it_takes_and_gives(tmp_path: Path) -> None:
    model, file, path = exported(Heads(), (1, 3, 6, 6), tmp_path / "heads")
    told = json.loads(path.with_suffix(".json").read_text())
    graph, types = file.subgraphs[0], schema().TensorType
    names = {types.INT8: "int8", types.FLOAT32: "float32"}
    for field, indices in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        for info, index in zip(told[field], indices, strict=True):
            tensor = graph.tensors[int(index)]
            assert (info["name"], info["dtype"]) == (tensor.name.decode(), names[tensor.type])
            assert info["shape"] == tensor.shape.tolist()
            if info["dtype"] == "int8":
                assert info["qparams"]["scale"] == [float(tensor.quantization.scale[0])]
                assert info["qparams"]["zero_point"] == [int(tensor.quantization.zeroPoint[0])]
    assert [i["dtype"] for i in told["inputs"]] == ["int8"]
    assert [o["dtype"] for o in told["outputs"]] == ["int8", "int8", "int8", "float32"]
    edgeq.export(model, "litert", io="float")
    told = json.loads(path.with_suffix(".json").read_text())
    assert {i["dtype"] for i in (*told["inputs"], *told["outputs"])} == {"float32"}


class Camera(nn.Module):
    """An image of bytes, normalised inside; whole numbers go through too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(image.float() / 255 - 0.5), ids + 1


@pytest.mark.parametrize("whole", [torch.int32, torch.int64])
def test_an_image_of_bytes_is_said_to_be_one(whole: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [(torch.randint(0, 256, (1, 3, 6, 6), dtype=torch.uint8), torch.arange(3, dtype=whole)) for _ in range(3)]
    edgeq.quantize(Camera().eval(), example_inputs=batches[0], calibration=batches, output=tmp_path / "out")
    path = edgeq.export(tmp_path / "out", "litert").path
    told = json.loads(path.with_name("model.json").read_text())
    assert [row["dtype"] for row in told["inputs"]] == ["uint8", str(whole).removeprefix("torch.")]
    assert edgeq.verify(tmp_path / "out")["backends"]["litert"]["max_lsb"] == 0


class Two(nn.Module):
    """An image and features in; integers out twice, once more by another name, and floats."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(6, 5)

    def forward(self, image: Tensor, features: Tensor) -> dict[str, Tensor]:
        scores = self.linear(features)
        return {"map": self.conv(image), "scores": scores, "again": scores, "odds": torch.exp(scores)}


def test_bytes_at_the_edge_are_the_same_integers_plus_128(tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(1, 3, 6, 6), torch.rand(2, 6)) for _ in range(3)]
    model = edgeq.quantize(Two().eval(), example_inputs=batches[0], calibration=batches, output=tmp_path / "out")
    signed = edgeq.export(model, "litert", folder=tmp_path / "int8").path
    made = edgeq.export(model, "litert", io="uint8")
    ends = [row for row in made.coverage if row.kind == "QUANTIZE" and not row.layers]
    assert len(ends) == 5 and {row.status for row in ends} == {"integer"}
    for resolver in (OpResolverType.BUILTIN_REF, OpResolverType.AUTO):
        ours, theirs = (Interpreter(str(path), experimental_op_resolver_type=resolver) for path in (signed, made.path))
        for engine in (ours, theirs):
            engine.allocate_tensors()
        drawn = np.random.default_rng(0)
        for a, b in zip(ours.get_input_details(), theirs.get_input_details(), strict=True):
            (scale, zero_point), shifted = a["quantization"], b["quantization"]
            assert b["dtype"] is np.uint8 and shifted == (scale, zero_point + 128) and a["name"] == b["name"]
            q = drawn.integers(-128, 128, a["shape"]).astype(np.int8)
            ours.set_tensor(a["index"], q)
            theirs.set_tensor(b["index"], (q.astype(np.int16) + 128).astype(np.uint8))
        ours.invoke()
        theirs.invoke()
        for a, b in zip(ours.get_output_details(), theirs.get_output_details(), strict=True):
            x, y = ours.get_tensor(a["index"]), theirs.get_tensor(b["index"])
            if a["dtype"] is np.float32:
                np.testing.assert_array_equal(x, y)
                continue
            (scale, zero_point), shifted = a["quantization"], b["quantization"]
            assert b["dtype"] is np.uint8 and shifted == (scale, zero_point + 128)
            np.testing.assert_array_equal(x.astype(np.int16) + 128, y)
    told = json.loads(made.path.with_suffix(".json").read_text())
    assert [(row["name"], row["dtype"]) for row in told["outputs"]] == [
        ("map", "uint8"),
        ("scores", "uint8"),
        ("again", "uint8"),
        ("odds", "float32"),
    ]
    first = told["inputs"][0]["qparams"]
    assert (first["qmin"], first["qmax"]) == (0, 255)
    assert first["zero_point"] == [model.inputs[0].qparams.zero_point[0] + 128]
    found = edgeq.verify(model)["backends"]["litert"]
    assert (found["max_lsb"], found["exact_share"]) == (0, 1.0)


@pytest.mark.parametrize("runtime", ["litert", "executorch", "coreml", "tvm"])
def test_every_runtime_s_description_has_the_user_s_names(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(1, 3, 6, 6),) for _ in range(3)]
    model = edgeq.quantize(Heads().eval(), example_inputs=batches[0], calibration=batches, output=tmp_path / "out")
    told = json.loads((edgeq.export(model, runtime).path.parent / "model.json").read_text())
    assert [row["name"] for row in told["inputs"]] == ["x"]
    assert [row["name"] for row in told["outputs"]] == ["scores", "mask", "turned", "odds"]


class Shared(nn.Module):
    """Weights that several layers share, beside each other, behind each other, and two of the same values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight
        self.third.weight.data.copy_(self.first.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(torch.tanh(self.first(x))) + self.second(x) + self.third(torch.sin(x))


def test_shared_weights_stay_int8_once(tmp_path: Path) -> None:
    """Against the module with its weights rounded by NumPy to nearest."""
    _, file, path = exported(
        module := Shared(), (4, 16), tmp_path / "shared", target="litert", precision="w8", recipe="minmax"
    )
    weight = module.first.weight.detach().numpy()
    scale = np.abs(weight).max(1, keepdims=True) / np.float32(127)
    with torch.no_grad():
        module.first.weight.copy_(torch.from_numpy(np.round(weight / scale) * scale))
        module.third.weight.copy_(module.first.weight)
    x = torch.randn(4, 16)
    torch.testing.assert_close(load(path)([x])[0], module(x), rtol=0, atol=1e-5)
    held = [
        t.type
        for t in file.subgraphs[0].tensors
        if tuple(t.shape) == (16, 16) and file.buffers[t.buffer].data is not None
    ]
    assert held == [schema().TensorType.INT8]


def test_weights_stay_int8_where_a_pad_stands_before_a_kernel_with_a_clip(tmp_path: Path) -> None:
    """litert-torch pads in an operator of its own where a convolution strides, and fuses the clip behind it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU6()]
    model, file, path = exported(
        nn.Sequential(*layers).eval(), (1, 16, 24, 24), tmp_path, target="litert", precision="w8"
    )
    held = [
        t for graph in file.subgraphs for t in graph.tensors if t.type == 9 and len(t.shape) == 4
    ]  # INT8 in the schema
    assert sorted(tuple(t.shape) for t in held) == [(24, 3, 3, 16), (32, 3, 3, 24)]
    x = torch.randn(1, 16, 24, 24)
    assert torch.allclose(load(path)([x])[0], model.qdq([x])[0], atol=1e-5)
