"""What is exactly wrong is said in words: outputs of the QDQ program that are far from the user's own module."""

from __future__ import annotations

import html
import io
import json
import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from edgeq import export, load, quantize, report, verify
from edgeq.pages.tables import parity_table
from edgeq.spec import EdgeqWarning, QuantPlan


class BoxesAndScores(nn.Module):
    """Boxes in pixels beside raw scores in one tensor, which has one scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.box, self.score = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 3, 1)
        with torch.no_grad():
            self.box.weight *= 300
            self.box.bias.fill_(320.0)  # type: ignore[union-attr] # it has a bias

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        return torch.cat((torch.relu(self.box(y)), self.score(y)), 1)


UNITS = torch.tensor([1.0, 0.01, 1e4])


class Policy(nn.Module):
    """A linear layer on quantities of unlike units, trained on what the sensors give."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 16), nn.Linear(16, 2)
        with torch.no_grad():
            self.first.weight /= UNITS

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def said(network: nn.Module, data: list[tuple[Tensor, ...]], plan: QuantPlan | None = None) -> tuple[str, Tensor]:
    """The warnings of quantize, and the worst error of each channel relative to its largest value."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = quantize(network.eval(), example_inputs=data[0], calibration=data, plan=plan)
    with torch.no_grad():
        want = torch.cat([network(*batch) for batch in data])
    error = (torch.cat([model.qdq(batch)[0] for batch in data]) - want).abs()
    axes = [a for a in range(want.dim()) if a != 1]
    told = [str(w.message) for w in caught if issubclass(w.category, EdgeqWarning)]
    return "; ".join(told), error.amax(axes) / want.abs().amax(axes)


def with_layer(key: str, precision: str) -> QuantPlan:
    """A plan in which a person says what layer `key` computes in, so that nothing changes it."""
    return QuantPlan("portable", "default", {key: precision})


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_scores_lost_beside_boxes_are_named_and_saved_by_what_the_sentence_says() -> None:
    data = [(torch.randn(1, 3, 16, 16),) for _ in range(4)]
    network = BoxesAndScores()
    told, errors = said(network, data, with_layer("cat", "w8a8"))
    assert "axis 1, index 2 … 4 (3 of them): lost" in told and float(errors[2:].min()) > 0.3
    told, errors = said(network, data, with_layer("cat", "fp32"))
    assert not told and float(errors.max()) < 0.05


def test_unlike_units_in_one_input_are_told_and_saved_by_what_the_sentence_says() -> None:
    data = [(torch.randn(1, 3) * UNITS,) for _ in range(16)]
    network = Policy()
    told, errors = said(network, data, with_layer("first/linear", "w8a8"))
    assert "far from the float network's" in told and "first/linear" in told and float(errors.max()) > 0.2
    told, errors = said(network, data, with_layer("first/linear", "fp32"))
    assert not told and float(errors.max()) < 0.05


def test_an_ordinary_network_is_not_warned_of() -> None:
    data = [(torch.randn(1, 3, 16, 16),) for _ in range(4)]
    told, errors = said(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)), data)
    assert not told and float(errors.max()) < 0.05


def test_what_is_exactly_wrong_is_said_by_the_manifest_verify_and_the_report(tmp_path: Path) -> None:
    data = [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    network = BoxesAndScores().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EdgeqWarning)
        plan = with_layer("cat", "w8a8")
        model = quantize(network, example_inputs=data[0], calibration=data, plan=plan, output=tmp_path)
    (sentence,) = model.far
    assert ": lost in quantization" in sentence and load(tmp_path).far == model.far
    assert json.loads((tmp_path / "manifest.json").read_text())["far"] == [sentence]
    export(tmp_path, "tvm")
    found = verify(tmp_path)
    assert found["far"] == [sentence] and found["backends"]["tvm"]["max_lsb"] == 0
    told = f"The runtimes compute the integers exactly, but they are far from float: {sentence}."
    console = Console(width=2000, file=io.StringIO())
    console.print(*parity_table(found))
    assert told in console.file.getvalue()  # type: ignore[attr-defined] # a StringIO
    assert html.escape(told, quote=False) in html.unescape(report(tmp_path).read_text()).replace("&#39;", "'")
