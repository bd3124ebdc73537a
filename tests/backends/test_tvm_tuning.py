"""Schedules searched for float kernels: the log grows, serves later exports, and changes no result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgeq
from edgeq.backends.tvm import tuning
from edgeq.backends.tvm.run import load
from edgeq.graph.package import QuantizedModel
from edgeq.spec import EdgeqError
from edgeq.task import Task

TRIALS = 3


class Small(nn.Module):
    """Two convolutions and a softmax, the same weights each time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 16, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.second(torch.relu(self.first(x))).mean((2, 3)), 1)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """The network quantized, exported with a search, its log beside it."""
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(1, 3, 16, 16, generator=generator),) for _ in range(4)]
    task = Task("small", model=lambda: Small().eval(), example_inputs=lambda: batches[0], calibration=lambda: batches)
    folder = tmp_path_factory.mktemp("tuned") / "small"
    model = edgeq.quantize(task, output=folder)
    told: list[tuple[str, int, int | None]] = []
    edgeq.export(folder, "tvm", tune=TRIALS, progress=lambda *step: told.append(step))
    assert ("tune float kernels", 0, None) not in told and told[-1][0] == "tune float kernels"
    assert told[-1][1] == told[-1][2]
    return model


def log(model: QuantizedModel) -> list[str]:
    """The log's records, a line each."""
    assert model.folder is not None
    return (Path(model.folder) / "tvm" / "tuning" / tuning.FILES[1]).read_text().splitlines()


def test_a_search_keeps_its_log_and_later_exports_use_it(tuned: QuantizedModel) -> None:
    records = log(tuned)
    assert len(records) >= 2 * TRIALS  # two convolutions at least
    edgeq.export(tuned, "tvm", tune=TRIALS)
    assert log(tuned) == records  # nothing is timed twice
    assert tuned.folder is not None
    artifact = Path(tuned.folder) / "tvm" / "float.so"
    with_log = artifact.read_bytes()
    edgeq.export(tuned, "tvm", float_twin=True)
    assert artifact.read_bytes() == with_log
    (Path(tuned.folder) / "tvm" / "tuning").rename(Path(tuned.folder) / "elsewhere")
    try:
        edgeq.export(tuned, "tvm", float_twin=True)
        assert artifact.read_bytes() != with_log
    finally:
        (Path(tuned.folder) / "elsewhere").rename(Path(tuned.folder) / "tvm" / "tuning")


def test_tuned_floats_compute_the_network(tuned: QuantizedModel) -> None:
    assert tuned.folder is not None
    edgeq.export(tuned, "tvm", float_twin=True)
    (found,) = load(Path(tuned.folder) / "tvm" / "float.so")(tuned.golden)
    wanted = Small().eval()(*tuned.golden)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_integers_stay_what_they_are(tuned: QuantizedModel) -> None:
    # the softmax behind them may sum in another order with a tuned schedule; a logit one step off would move it by whole steps
    row = edgeq.verify(tuned, to=["tvm"])["backends"]["tvm"]
    assert row["max_lsb"] < 0.01


def test_a_damaged_log_is_one_sentence(tuned: QuantizedModel) -> None:
    assert tuned.folder is not None
    records = Path(tuned.folder) / "tvm" / "tuning" / tuning.FILES[1]
    whole = records.read_bytes()
    records.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises(EdgeqError, match="tuning log is damaged; remove the folder"):
            edgeq.export(tuned, "tvm", float_twin=True)
    finally:
        records.write_bytes(whole)


@pytest.mark.parametrize("backend", ["litert", "tvm-arm64"])
def test_where_there_is_nothing_to_tune(tuned: QuantizedModel, backend: str) -> None:
    with pytest.raises(EdgeqError, match="nothing to tune"):
        edgeq.export(tuned, backend, tune=1)
