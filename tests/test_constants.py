"""One changed bit of a weight or a scale is seen before anything runs, even where the manifest was hashed again behind it."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
from torch import nn

import edgeq
from edgeq.graph.package import QuantizedModel, load
from edgeq.run.agree import agree
from edgeq.run.files import find
from edgeq.spec import EdgeqError

RUNTIMES = ("litert", "executorch", "coreml", "tvm")
FLIPS = 12
ARRAY = struct.pack("<Q", 0xDD5E40F096B4A13F)  # TVM's mark before a saved array
INT8 = b"\x00\x08\x01\x00"  # its type: code, bits, lanes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """Convolutions of every layout (plain, by channel, twice the same, transposed) and a linear layer, on all runtimes."""
    torch.manual_seed(0)
    twice = nn.Conv2d(8, 8, 1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), twice, nn.ReLU(), twice, nn.ConvTranspose2d(8, 6, 2, 2),
        nn.Flatten(), nn.Linear(6 * 10 * 10, 5),
    ).eval()  # fmt: skip
    batches = [(torch.randn(1, 3, 16, 16),) for _ in range(3)]
    made = edgeq.quantize(
        network, example_inputs=batches[0], calibration=batches, output=tmp_path_factory.mktemp("m") / "out"
    )
    for runtime in RUNTIMES:
        edgeq.export(made, runtime)
    return made


def constants(data: bytes, model: QuantizedModel, runtime: str) -> Iterator[tuple[str, int, int]]:
    """(what, first byte, bytes) of weights and scales in a file, found by their bytes in every order that a kernel may want."""
    for op in model.integers.ops.values():
        if op.weight is None or op.weight_scale is None:
            continue
        w, scale = op.weight.numpy(), op.weight_scale.numpy()
        axes = (
            [(0, 1), (1, 0)] if w.ndim == 2 else [(0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0), (2, 3, 0, 1), (2, 3, 1, 0)]
        )
        at = max(data.find(np.ascontiguousarray(w.transpose(order)).tobytes()) for order in axes)
        if at >= 0:
            yield f"weights of {op.layer}", at, w.size
        folded = (op.input_qparams[0].scale[0] * scale / op.output_qparams.scale[0]).astype(np.float32)
        stored = {"coreml": scale.astype(np.float16), "tvm": folded}.get(runtime, scale)
        if (at := data.find(stored.tobytes())) >= 0:
            yield f"weight scales of {op.layer}", at, stored.nbytes
        if (
            runtime in ("litert", "executorch")
            and (at := data.find(struct.pack("<f", op.output_qparams.scale[0]))) >= 0
        ):
            yield f"scale of {op.layer}", at, 4
    at = data.find(ARRAY) if runtime == "tvm" else -1
    while at >= 0:  # packed weights, whole vectors of them: a row of bytes that is not padding
        (axes_,) = struct.unpack_from("<i", data, at + 24)
        begin = at + 40 + 8 * axes_
        if data[at + 28 : at + 32] == INT8 and any(data[begin : begin + 4]):
            yield "packed weights", begin, 4
        at = data.find(ARRAY, at + 8)


def test_scales_of_a_pte_are_read_to_the_bit(tmp_path: Path) -> None:
    """flatc prints six digits: a scale of 1e-7 stands there as 0, like small integers, and like scales a ten-millionth apart."""
    steps = torch.arange(-128.0, 128.0).reshape(1, 1, 16, 16)
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Hardswish()).eval()
    for name, unit in (("near", 1e-4), ("small", 1e-7)):
        with torch.no_grad():
            network[0].weight.fill_(1.003)
            network[0].bias.fill_(40 * unit)
            network[1].bias.mul_(unit)
        batches = [(steps * unit,)]
        made = edgeq.quantize(network, example_inputs=batches[0], calibration=batches, output=tmp_path / name)
        first = next(iter(made.integers.ops.values()))
        taken, given = first.input_qparams[0], first.output_qparams
        assert taken.zero_point[0] == 0 != given.zero_point[0] and abs(taken.scale[0] - given.scale[0]) < 1e-6
        agree(made, edgeq.export(made, "executorch"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_flipped_bit_is_named_before_anything_runs(model: QuantizedModel, runtime: str, tmp_path: Path) -> None:
    assert model.folder is not None
    folder = tmp_path / "out"
    shutil.copytree(model.folder, folder)
    read = load(folder)
    artifact = find(read, runtime).path
    agree(read, find(read, runtime))
    chance, seen = random.Random(0), set()
    for file in [p for p in sorted(artifact.rglob("*")) if p.is_file()] if artifact.is_dir() else [artifact]:
        whole = file.read_bytes()
        for what, begin, size in constants(whole, model, runtime):
            seen.add(what.split(" of ")[0])
            for _ in range(FLIPS if "weights" in what else 2):
                changed = bytearray(whole)
                changed[begin + chance.randrange(size)] ^= 1 << chance.randrange(8)
                file.write_bytes(changed)
                networks.sealed(folder)
                with pytest.raises(EdgeqError, match="does not hold the program's numbers"):
                    agree(read, find(read, runtime))
        file.write_bytes(whole)
    assert {"packed weights" if runtime == "tvm" else "weights", "weight scales"} <= seen
    networks.sealed(folder)
    agree(read, find(read, runtime))


def test_verify_compares_before_it_runs(model: QuantizedModel, tmp_path: Path) -> None:
    assert model.folder is not None
    folder = tmp_path / "out"
    shutil.copytree(model.folder, folder)
    path = find(load(folder), "litert").path
    data = bytearray(path.read_bytes())
    op = next(op for op in model.integers.ops.values() if op.kind == "linear")
    assert op.weight is not None
    data[bytes(data).index(op.weight.numpy().tobytes())] ^= 1
    path.write_bytes(data)
    networks.sealed(folder)
    with pytest.raises(
        EdgeqError, match=r"model\.tflite: does not hold the program's numbers: weights of 8/linear differ"
    ):
        edgeq.verify(folder, to=["litert"])


@pytest.mark.parametrize("file", ["manifest.json", "qparams.json"])
def test_numbers_that_are_not_the_programs_are_named(model: QuantizedModel, file: str, tmp_path: Path) -> None:
    """A scale doubled in a JSON file would turn two steps of difference into one, and a wrong file into an exact one."""
    assert model.folder is not None
    folder = tmp_path / "out"
    shutil.copytree(model.folder, folder)
    for name in ("qparams.json",) if file == "qparams.json" else ("qparams.json", "manifest.json"):
        told = json.loads((folder / name).read_text())
        changed = told["tensors"]["8/linear"] if name == "qparams.json" else told["outputs"][0]["qparams"]
        changed["scale"] = [2 * changed["scale"][0]]
        (folder / name).write_text(json.dumps(told))
    networks.sealed(folder)
    with pytest.raises(EdgeqError, match=r"other numbers"):
        edgeq.verify(folder, to=["litert"])


def test_a_bias_beyond_float32_is_the_same_bias(tmp_path: Path) -> None:
    """ExecuTorch divides it by its scale in float32: small weights behind a folded norm leave it one off in four million."""
    torch.manual_seed(0)
    layer = nn.Linear(8, 256)
    with torch.no_grad():
        layer.weight.mul_(1e-3)
    batches = [(torch.randn(2, 8),) for _ in range(2)]
    made = edgeq.quantize(layer.eval(), example_inputs=batches[0], calibration=batches, output=tmp_path / "out")
    (op,) = (op for op in made.integers.ops.values() if op.bias is not None)
    assert op.bias is not None and op.bias.abs().max() > 2**21
    edgeq.export(made, "executorch")
    agree(made, find(made, "executorch"))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_network_without_weights_holds_its_scales(runtime: str, tmp_path: Path) -> None:
    """Core ML's are float16, which a file without weights says of them alone."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.ReLU6(), nn.MaxPool2d(2), nn.Tanh()).eval()
    batches = [(torch.randn(1, 3, 8, 8),) for _ in range(2)]
    made = edgeq.quantize(network, example_inputs=batches[0], calibration=batches, output=tmp_path / "out")
    edgeq.export(made, runtime)
    agree(made, find(made, runtime))
