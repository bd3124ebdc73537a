"""Every operator of every artefact, int8 and float, names all layers it computes, and so does every measured row."""

from __future__ import annotations

import pytest
import torch
from networks import InvertedResidual, seeded
from torch import Tensor, nn

import edgeq
from edgeq import backends
from edgeq.task import Task

RUNTIMES = [name for name in backends.RUNTIMES if backends.runs_here(name) == "yes"]


class Mixed(nn.Module):
    """Integer layers around ones that every runtime leaves in float: an inverted residual, layer norm, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.last = InvertedResidual(), nn.LayerNorm(5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(nn.functional.gelu(self.norm(self.body(x))))
        return out


def batches() -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(1, 3, 32, 32, generator=generator),) for _ in range(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> edgeq.QuantizedModel:
    task = Task("mixed", lambda: seeded(Mixed), lambda: batches()[0], batches)
    return edgeq.quantize(task, recipe="minmax", output=tmp_path_factory.mktemp("mixed") / "mixed")


@pytest.mark.parametrize("twin", [False, True], ids=["int8", "float"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rows_name_every_layer(runtime: str, twin: bool, model: edgeq.QuantizedModel) -> None:
    artifact = edgeq.export(model, runtime, float_twin=twin)
    labels = set((model.twin_labels if twin else model.labels).values())
    assert {key for row in artifact.coverage for key in row.layers} == labels
    assert all(
        row.layers for row in artifact.coverage if row.kind in ("conv2d", "CONV_2D", "linear", "FULLY_CONNECTED")
    )
    report = backends.backend(runtime).profile(artifact, model.golden, warmup=1, runs=5)
    assert report is not None
    assert {key for row in report.rows for key in row.layers} == labels
    clip = next(key for key in labels if "clamp" in key)
    assert any(clip in row.layers and len(row.layers) > 1 for row in report.rows), "a fused activation has no row alone"
    assert sum(row.ms for row in report.rows) == pytest.approx(report.total_ms.median)
    islands = {key for row in report.rows for key in row.layers if "layer_norm" in key or "gelu" in key}
    assert len(islands) == 2
