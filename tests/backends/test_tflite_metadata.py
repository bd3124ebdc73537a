"""What the `.tflite` says of its image: read by the published schema's field ids, with flatbuffers' own reader."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import encode, number_types, packer
from flatbuffers.table import Table
from torch import Tensor, nn

import edgeq
from edgeq.backends.litert.flatbuffer import schema

NAMES = ["cat", "dog", "a hen", "Kröte", "fox"]
BYTES = {"color": "RGB", "mean": [127, 127, 127], "std": [128, 128, 128], "layout": "NCHW", "labels": NAMES}


class Classifier(nn.Module):
    """An image in, five logits and features out."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(channels, 4, 3, 2), nn.Linear(4, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.conv(image).relu().mean((2, 3))
        return {"logits": self.linear(features), "features": features}


class Odd(Classifier):
    """Float operators read the image too."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return super().forward(image) | {"exp": torch.exp(image)}


def pixels(count: int, channels: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    drawn = np.random.default_rng(0).integers(0, 256, (count, 6, 8, channels))
    drawn[:, 0, 0], drawn[:, 1, 0] = 0, 255
    return drawn.astype(np.uint8)


def prepared(images: np.ndarray[Any, Any], mean: Any, std: Any) -> list[tuple[Tensor]]:
    values = ((images - np.asarray(mean)) / np.asarray(std)).transpose(0, 3, 1, 2).astype(np.float32)
    return [(torch.from_numpy(np.ascontiguousarray(v[None])),) for v in values]


def quantized(
    folder: Path, preprocessing: dict[str, Any], batches: list[tuple[Tensor]], network: nn.Module | None = None
) -> Any:
    torch.manual_seed(0)
    made = (network or Classifier()).eval()
    task = edgeq.Task("seen", lambda: made, lambda: batches[0], lambda: batches, preprocessing=preprocessing)
    return edgeq.quantize(task, output=folder, recipe="minmax")


class Fields:
    """A table of a flatbuffer: its fields by id."""

    def __init__(self, data: bytes, at: int) -> None:
        self.table = Table(bytearray(data), at)

    @classmethod
    def root(cls, data: bytes) -> Fields:
        return cls(data, encode.Get(packer.uoffset, data, 0))

    def has(self, field: int) -> int:
        return int(self.table.Offset(4 + 2 * field))

    def text(self, field: int) -> str:
        return str(self.table.String(self.table.Pos + self.has(field)).decode())

    def number(self, field: int, kind: Any = number_types.Uint8Flags) -> int:
        return int(self.table.Get(kind, self.table.Pos + self.has(field))) if self.has(field) else 0

    def inner(self, field: int) -> Fields:
        return Fields(bytes(self.table.Bytes), self.table.Indirect(self.table.Pos + self.has(field)))

    def inners(self, field: int) -> list[Fields]:
        start = self.table.Vector(self.has(field)) if self.has(field) else 0
        count = self.table.VectorLen(self.has(field)) if self.has(field) else 0
        return [Fields(bytes(self.table.Bytes), self.table.Indirect(start + 4 * i)) for i in range(count)]

    def texts(self, field: int) -> list[str]:
        start, count = self.table.Vector(self.has(field)), self.table.VectorLen(self.has(field))
        return [str(self.table.String(start + 4 * i).decode()) for i in range(count)]

    def floats(self, field: int) -> list[float]:
        found = self.table.GetVectorAsNumpy(number_types.Float32Flags, self.has(field))
        return [float(x) for x in found]


def told(path: Path) -> Fields | None:
    """The metadata of a file, None where it has none."""
    model = schema().ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    found = [bytes(model.buffers[m.buffer].data) for m in model.metadata if m.name == b"TFLITE_METADATA"]
    if not found:
        return None
    assert found[0][4:8] == b"M001"
    return Fields.root(found[0])


@pytest.mark.parametrize("io_", ["int8", "uint8", "float"])
@pytest.mark.parametrize("scale", [None, 1 / 255])
def test_the_file_says_what_pixels_become_and_what_classes_are_called(
    io_: str, scale: float | None, tmp_path: Path
) -> None:
    mean, std = ([127, 127, 127], [128, 128, 128]) if scale is None else ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    preprocessing = BYTES | {"mean": mean, "std": std} | ({} if scale is None else {"scale": scale})
    in_bytes = [np.asarray(x) / (scale or 1) for x in (mean, std)]
    model = quantized(tmp_path / "out", preprocessing, prepared(pixels(3), *in_bytes))
    path = edgeq.export(model, "litert", io=io_, channels_last=True).path
    root = told(path)
    assert root is not None and root.text(7) == "1.0.0"
    (graph,) = root.inners(3)
    (image,), outputs = graph.inners(2), graph.inners(3)
    assert (image.text(0), [o.text(0) for o in outputs]) == ("image", ["logits", "features"])
    assert image.texts(2) == ["batch", "height", "width", "channels"]
    content = image.inner(3)
    assert content.number(0) == 2  # ImageProperties
    assert content.inner(1).number(0) == 1  # RGB
    size = content.inner(1).inner(1)
    assert [size.number(i, number_types.Uint32Flags) for i in (0, 1)] == [8, 6]  # width, height
    (unit,) = image.inners(4)
    assert unit.number(0) == 1  # NormalizationOptions
    np.testing.assert_allclose([unit.inner(1).floats(i) for i in (0, 1)], in_bytes, rtol=1e-6)
    most, least = (image.inner(5).floats(i) for i in (0, 1))
    if io_ == "float":
        np.testing.assert_allclose([least, most], [(b - in_bytes[0]) / in_bytes[1] for b in (0, 255)], rtol=1e-6)
    else:
        assert (least, most) == (([-128.0], [127.0]) if io_ == "int8" else ([0.0], [255.0]))
    (labels,) = outputs[0].inners(6)
    assert (labels.text(0), labels.number(2), outputs[1].inners(6)) == ("labels.txt", 2, [])  # TENSOR_AXIS_LABELS
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().split("\n") == NAMES
        assert archive.getinfo("labels.txt").compress_type == zipfile.ZIP_STORED
    assert edgeq.verify(model)["backends"]["litert"]["max_lsb"] == 0
    again = edgeq.export(model, "litert", io=io_, channels_last=True, folder=tmp_path / "again").path
    assert again.read_bytes() == path.read_bytes()


def test_a_scale_alone_is_a_std(tmp_path: Path) -> None:
    shares = prepared(pixels(3), 0, 255)
    model = quantized(tmp_path / "out", {"color": "RGB", "scale": 1 / 255}, shares)
    root = told(edgeq.export(model, "litert").path)
    assert root is not None
    options = root.inners(3)[0].inners(2)[0].inners(4)[0].inner(1)
    np.testing.assert_allclose([options.floats(0), options.floats(1)], [[0], [255]])


@pytest.mark.parametrize("io_", ["int8", "uint8", "float"])
@pytest.mark.parametrize("network", [Classifier, Odd])
def test_channels_last_are_the_same_numbers_in_another_order(
    network: type[nn.Module], io_: str, tmp_path: Path
) -> None:
    model = quantized(tmp_path / "out", BYTES, prepared(pixels(3), 127, 128), network())
    answers = []
    for last in (False, True):
        made = edgeq.export(model, "litert", io=io_, channels_last=last)
        engine = Interpreter(str(made.path))
        engine.allocate_tensors()
        (given,) = engine.get_input_details()
        x = pixels(1).astype(np.float32) if last else pixels(1).transpose(0, 3, 1, 2).astype(np.float32)
        assert tuple(given["shape"]) == x.shape == made.inputs[0].shape
        signed = {np.int8: x - 128, np.uint8: x, np.float32: (x - 127) / 128}
        engine.set_tensor(given["index"], signed[given["dtype"]].astype(given["dtype"]))
        engine.invoke()
        answers.append([engine.get_tensor(d["index"]) for d in engine.get_output_details()])
        beside = json.loads(made.path.with_suffix(".json").read_text())
        assert beside["preprocessing"]["layout"] == ("NHWC" if last else "NCHW")
        assert edgeq.verify(model)["backends"]["litert"]["max_lsb"] == 0
    for a, b in zip(*answers, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_image_of_bytes_lies_as_pixels_do_and_takes_them_as_they_are(tmp_path: Path) -> None:
    model = quantized(tmp_path / "out", BYTES, prepared(pixels(3), 127, 128))
    made = edgeq.export(model, "litert", io="uint8")
    assert made.inputs[0].shape == (1, 6, 8, 3) and not any("bytes as they are" in note for note in made.notes)
    engine = Interpreter(str(made.path))
    engine.allocate_tensors()
    (given,) = engine.get_input_details()
    for photograph, (normalised,) in zip(pixels(3), prepared(pixels(3), 127, 128), strict=True):
        engine.set_tensor(given["index"], photograph[None])
        engine.invoke()
        wanted = model.simulate(normalised, "litert_xnnpack")
        for detail, output in zip(engine.get_output_details(), wanted, strict=True):
            scale, zero_point = detail["quantization"]
            got = (engine.get_tensor(detail["index"]).astype(np.float32) - zero_point) * np.float32(scale)
            np.testing.assert_array_equal(got, output.numpy())


def test_where_the_scale_is_not_that_of_bytes_a_sentence_says_so(tmp_path: Path) -> None:
    model = quantized(tmp_path / "out", BYTES, prepared(pixels(3) // 2, 127, 128))
    made = edgeq.export(model, "litert", io="uint8")
    q = made.inputs[0].qparams
    assert q is not None
    bytes_ = np.arange(256)
    off = np.abs((bytes_ - 127) / 128 / q.scale[0] + q.zero_point[0] - bytes_).max()
    assert off > 1
    (note,) = [n for n in made.notes if "bytes as they are" in n]
    assert f"by up to {off:.3g} steps" in note and "export --io float --channels-last" in note
    assert not any("bytes" in note for note in edgeq.export(model, "litert", io="float", channels_last=True).notes)


def test_what_stays_float_is_said(tmp_path: Path) -> None:
    model = quantized(tmp_path / "out", BYTES, prepared(pixels(3), 127, 128), Odd())
    made = edgeq.export(model, "litert", io="uint8")
    assert made.inputs[0].dtype == "float32" and "image stays float32, as operators in float read it" in made.notes


def test_a_channel_of_its_own_scale_is_for_the_network_to_normalise(tmp_path: Path) -> None:
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    model = quantized(tmp_path / "out", BYTES | {"mean": mean, "std": std}, prepared(pixels(3), mean, std))
    (note,) = [n for n in edgeq.export(model, "litert", io="uint8").notes if "bytes as they are" in n]
    assert note.endswith("normalise inside the network for it")


def test_numbers_for_other_pixels_are_left_out_and_said(tmp_path: Path) -> None:
    wrong = BYTES | {"mean": [0.485] * 3, "std": [0.229] * 3}  # of pixels from 0 to 1, and no scale says so
    made = edgeq.export(quantized(tmp_path / "out", wrong, prepared(pixels(3), 127, 128)), "litert")
    (note,) = [n for n in made.notes if "PREPROCESSING" in n]
    assert "makes pixels -2.12 … 1.11e+03" in note and "'scale': 1 / 255" in note
    assert told(made.path) is None


def test_labels_belong_to_outputs_of_as_many_classes(tmp_path: Path) -> None:
    model = quantized(tmp_path / "out", BYTES | {"labels": ["a", "b"]}, prepared(pixels(3), 127, 128))
    made = edgeq.export(model, "litert")
    assert any("2 labels stand for no output's last axis" in note for note in made.notes)
    assert not zipfile.is_zipfile(io.BytesIO(made.path.read_bytes()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": ["a", 2]}, r"\['labels'\]\[1\] is 2; write each class's name on one line"),
        ({"labels": ["a", "b\nc"]}, r"\['labels'\]\[1\] is 'b\\nc'"),
        ({"mean": "127"}, r"\['mean'\] is '127'; write a number, or one for each channel"),
        ({"mean": [1, 2]}, r"\['mean'\] has 2 numbers, and its image 3 channels"),
        ({"std": 0}, r"\['std'\] has a 0"),
        ({"scale": 0}, r"\['scale'\] is 0"),
    ],
)
def test_what_a_task_says_wrongly_ends_in_a_sentence(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = quantized(tmp_path / "out", BYTES, prepared(pixels(3), 127, 128))
    model.preprocessing = BYTES | change
    with pytest.raises(edgeq.EdgeqError, match=said):
        edgeq.export(model, "litert")


def test_what_is_no_image_gets_no_metadata(tmp_path: Path) -> None:
    batches = prepared(pixels(3, 1), 0, 1)
    for preprocessing in ({"mean": 0, "std": 1}, {"sampling": 16000, "labels": [0, 1]}, None):
        model = quantized(tmp_path / "out", preprocessing, batches, Classifier(1))
        assert told(edgeq.export(model, "litert", io="uint8").path) is None
        assert edgeq.export(model, "litert", io="uint8").inputs[0].shape == (1, 1, 6, 8)
    grey = quantized(tmp_path / "grey", {"color": "grayscale", "mean": 0, "std": 1}, batches, Classifier(1))
    root = told(edgeq.export(grey, "litert").path)
    assert root is not None and root.inners(3)[0].inners(2)[0].inner(3).inner(1).number(0) == 2


def test_channels_last_need_an_image_and_litert(tmp_path: Path) -> None:
    flat = [(torch.randn(1, 4),) for _ in range(3)]
    model = quantized(tmp_path / "out", {}, flat, nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(edgeq.EdgeqError, match="no input has four axes"):
        edgeq.export(model, "litert", channels_last=True)
    with pytest.raises(edgeq.EdgeqError, match="only litert has the choice"):
        edgeq.export(model, "tvm", channels_last=True)


class Normalising(Classifier):
    """ImageNet's mean and std inside, on pixels from 0 to 255, spelled as people do."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.mean = nn.Buffer(torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        if self.spelling == "by bytes":
            return super().forward((image - self.mean * 255) / (self.std * 255))
        if self.spelling in ("last", "camera"):
            image = image.permute(0, 3, 1, 2)
        if self.spelling == "camera":  # every value lies between two integers of the normalised grid
            return super().forward((image.float() / 255 - 0.5) / 0.25)
        return super().forward((image / 255 - self.mean) * (1 / self.std))


@pytest.mark.parametrize("spelling", ["by bytes", "by shares", "last", "camera"])
def test_a_network_that_normalises_its_pixels_takes_their_bytes(spelling: str, tmp_path: Path) -> None:
    images = pixels(4)
    last = spelling in ("last", "camera")
    given = [x if last else x.permute(0, 3, 1, 2).contiguous() for x in torch.tensor(images)[:, None]]
    batches = [(x if spelling == "camera" else x.float(),) for x in given]
    network = Normalising(spelling).eval()
    told_ = {"color": "RGB", "mean": 0, "std": 1, "layout": "NHWC" if last else "NCHW"}
    model = quantized(tmp_path / "out", told_, batches, network)
    assert set(model.islands) <= {"to"}  # from bytes to floats
    counted = {key for layer in model.layers for key in layer.keys}  # what torch.export asserts of a cast is no layer
    assert not any("assert" in key for key in counted) and {"conv/conv2d", "linear/linear"} <= counted
    assert edgeq.export(model, "litert").path and edgeq.verify(model)["backends"]["litert"]["max_lsb"] == 0
    made = edgeq.export(model, "litert", io="uint8")
    assert (made.inputs[0].dtype, made.inputs[0].shape) == ("uint8", (1, 6, 8, 3))
    assert {row.status for row in made.coverage} == {"integer"}
    assert edgeq.verify(model)["backends"]["litert"]["max_lsb"] == 0
    engine = Interpreter(str(made.path))
    engine.allocate_tensors()
    detail = engine.get_output_details()[0]
    scale, zero_point = detail["quantization"]
    for image, batch in zip(images, batches, strict=True):
        engine.set_tensor(engine.get_input_details()[0]["index"], image[None])
        engine.invoke()
        got = (engine.get_tensor(detail["index"]).astype(np.float32) - zero_point) * scale
        assert np.abs(got - network(*batch)["logits"].detach().numpy()).max() <= 4 * scale
