"""Every verb over operators of several results and over curves: also what looks at tensors, times and layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeq
from edgeq import backends
from edgeq.graph.package import QuantizedModel

RUNTIMES = [name for name in backends.RUNTIMES if name == "coreml" or backends.runs_here(name) == "yes"]

# [1, 8, 6, 6] behind a convolution → anything
ZOO: dict[str, dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]]] = {
    "several results": {
        "chunk": lambda x: x.chunk(2, 1)[0] * 2,
        "chunk's second": lambda x: x.chunk(2, 1)[1] * 2,
        "split": lambda x: x.split([3, 3, 2], 1)[1] + 1,
        "unbind": lambda x: x.unbind(2)[3] + 1,
        "max": lambda x: x.max(1)[0] * 2,
        "some of three": lambda x: torch.cat([x.chunk(3, -1)[0], x.chunk(3, -1)[2]], 1),
    },
    "curves": {
        "sigmoid": torch.sigmoid,
        "softmax": lambda x: x.softmax(1),
        "silu": F.silu,
        "gelu": F.gelu,
        "where": lambda x: torch.where(x > 0, x, x * 0.3),
        "division": lambda x: x / (x.abs() + 1),
        "clip": lambda x: x.clamp(-0.5, 0.7),
    },
}


class Cage(nn.Module):
    """A convolution, and behind it each animal by itself."""

    def __init__(self, animals: dict[str, Callable[[Tensor], Any]]) -> None:
        super().__init__()
        self.stem, self.animals = nn.Conv2d(3, 8, 3, padding=1), animals

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        return tuple(animal(x) for animal in self.animals.values())


@pytest.fixture(scope="module", params=ZOO)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    torch.manual_seed(0)
    net = Cage(ZOO[request.param]).eval()
    data = [(torch.randn(1, 3, 6, 6),) for _ in range(4)]
    task = edgeq.Task("zoo", lambda: net, lambda: data[0], lambda: data)
    made = edgeq.quantize(task, output=tmp_path_factory.mktemp("zoo") / "model")
    for runtime in RUNTIMES:
        edgeq.export(made, runtime)
    return made


def test_every_verb_runs(model: QuantizedModel, tmp_path: Path) -> None:
    parity = edgeq.verify(model, to=RUNTIMES, layers=True)
    for runtime, row in parity["backends"].items():
        for kernels in row["kernels"].values():
            for output in kernels["outputs"]:
                exact = 0.05 if output["equivalent"] and runtime != "coreml" else runtime == "coreml"
                assert output["max_lsb"] <= exact, (runtime, output)
    timed = [runtime for runtime in RUNTIMES if runtime != "coreml"]  # whose packages only a Mac times
    profiled = edgeq.profile(model, to=timed, runs=1, warmup=0)
    assert set(profiled["backends"]) == set(timed)
    page = edgeq.report(model, output=tmp_path / "report.html").read_text()
    assert all(key in page for key in model.labels.values())
