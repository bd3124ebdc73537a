"""Changed files of a model folder: the result or one sentence, never anything else."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import edgeq
from edgeq.spec import EdgeqError

TOOL = Path(__file__).parents[1] / "tools" / "mutate.py"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    batch = torch.rand(1, 3, 6, 6)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 2))
    folder = tmp_path_factory.mktemp("mutations") / "good"
    model = edgeq.quantize(network, example_inputs=(batch,), calibration=[batch, batch], output=folder)
    edgeq.export(model, "tvm")
    edgeq.export(model, "litert")
    edgeq.verify(model)
    return folder


@pytest.mark.parametrize(("kind", "count"), [("json", 150), ("bytes", 60), ("artefacts", 60)])
def test_a_change_is_a_sentence_or_harmless(kind: str, count: int, good: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("mutate", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    came: Counter[str] = Counter()
    for seed in range(count):
        done, error = tool.mutated(good, kind, seed, tmp_path / "copy")
        if error is not None and not isinstance(error, EdgeqError):
            raise AssertionError(f"{kind} {seed}: {done}") from error
        came["sentence" if error else f"taken: {done.split(':')[0]}"] += 1
    assert came["sentence"] >= (0.2 if kind == "artefacts" else 0.8) * count, came
    if kind == "bytes":  # all but the manifest's own are known by their hashes
        assert set(came) <= {"sentence", "taken: manifest.json"}, came
