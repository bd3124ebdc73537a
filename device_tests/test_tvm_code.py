"""The machine code of TVM's kernels: vector multiplies of int8 or int16 in the loops that sum, on every processor."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest
import torch
from conftest import need
from torch import Tensor, nn

import edgeq
from edgeq.backends.tvm.lower import lower
from edgeq.graph.package import QuantizedModel

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import disassemble

# backend → what dense sums multiply with, what depthwise ones do, and the least share of a loop's instructions
CODE = {
    "tvm-arm64": ({"smlal", "smlal2"}, {"smlal", "smlal2"}, 0.35),
    "tvm-arm64-dotprod": ({"sdot"}, {"smlal", "smlal2"}, 0.35),
    "tvm-hexagon": ({"vrmpy"}, {"vmpy"}, 0.05),  # which rounds its sums one by one, in the same loop
}
DENSE = ("conv2d", "conv_transpose2d", "linear", "conv1d")


class Net(nn.Module):
    """Every kind of sum, large enough that none is unrolled whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.strided = nn.Conv2d(3, 48, 3, 1, 1), nn.Conv2d(48, 64, 3, 2, 1)
        self.deep, self.deeper = nn.Conv2d(64, 64, 3, 1, 1, groups=64), nn.Conv2d(64, 64, 5, 2, 2, groups=64)
        self.point, self.up = nn.Conv2d(64, 96, 1), nn.ConvTranspose2d(96, 64, 2, 2)
        self.line, self.signal = nn.Linear(256, 512), nn.Conv1d(64, 96, 5, 1, 2)
        self.last = nn.Linear(512, 70)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[1, 3, 32, 32] → [64, 70] and [1, 96, 256]."""
        x = torch.relu(self.strided(torch.relu(self.first(x))))
        x = torch.relu(self.deeper(torch.relu(self.deep(x))))
        x = self.up(torch.relu(self.point(x))).flatten(2)
        return self.last(torch.relu(self.line(x[0]))), self.signal(x)


@pytest.fixture(scope="module")
def model() -> QuantizedModel:
    torch.manual_seed(0)
    net = Net().eval()
    return edgeq.quantize(
        edgeq.Task("sums", lambda: net, lambda: (torch.randn(1, 3, 32, 32),), lambda: [(torch.randn(1, 3, 32, 32),)]),
        target="tvm",
    )


def check(path: Path, dense: set[str], deep: set[str], least: float) -> None:
    found = disassemble.kernels(path)
    kinds = {kernel.name.partition("_quantize")[0] for kernel in found}
    assert {*DENSE, "depthwise_conv2d"} <= kinds
    for kernel in found:
        kind = kernel.name.partition("_quantize")[0]
        if kind in (*DENSE, "depthwise_conv2d"):
            loop = kernel.busiest
            wanted = deep if kind == "depthwise_conv2d" else dense
            assert loop.closed and set(loop.multiplies) <= wanted, (kernel.name, loop)
            assert loop.multiplies and loop.share >= least, (kernel.name, loop, loop.share)


@pytest.mark.parametrize("backend", CODE)
def test_sums_multiply_vectors(backend: str, model: QuantizedModel, tmp_path: Path):
    need("llvm-objdump-16", *(["clang-16", "ld.lld-16"] if backend == "tvm-hexagon" else ["aarch64-linux-gnu-gcc"]))
    check(edgeq.export(model, backend, folder=tmp_path).path, *CODE[backend])


@pytest.mark.skipif(platform.machine() != "x86_64", reason="links with this host's compiler")
def test_sums_of_x86_multiply_vectors(model: QuantizedModel, tmp_path: Path):
    need("llvm-objdump-16")
    for cpu, dense in (("sapphirerapids", {"vpdpbusd"}), ("skylake-avx512", {"vpmaddwd"}), ("haswell", {"vpmaddwd"})):
        artifact = lower(model.program, tmp_path, name=cpu, target={"kind": "llvm", "mcpu": cpu})
        check(artifact.path, dense, {"vpmulld", "vpmaddwd"}, 0.1)


@pytest.mark.parametrize("backend", ["tvm-arm64", "tvm-hexagon"])
def test_same_program_same_bytes(backend: str, model: QuantizedModel, tmp_path: Path):
    need(*(["clang-16", "ld.lld-16"] if backend == "tvm-hexagon" else ["aarch64-linux-gnu-gcc"]))
    folders = tmp_path / "a", tmp_path / "another" / "b"
    for folder in folders:
        edgeq.export(model, backend, folder=folder)
    first, again = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders)
    assert first == again
