"""Whole LiteRT programs: the order of outputs, float islands, profiles, and files and inputs that are wrong."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from qdq_operators import Plain, Weighted, quantized
from torch import Tensor, nn

from edgeq.backends.litert.lower import check, lower
from edgeq.backends.litert.profile import profile
from edgeq.backends.litert.run import load
from edgeq.graph.integer import read
from edgeq.graph.simulate import simulate
from edgeq.spec import EdgeqError

torch.set_num_threads(1)


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
