"""What a Core ML package in float16 cannot hold is said at quantize, with the tensor's name."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeq import backends, export, quantize
from edgeq.run.agree import agree
from edgeq.spec import EdgeqWarning


class Pressure(nn.Module):
    """Pascals in and out; `wide` is in the middle, where it stays in float or not."""

    def __init__(self, wide: float, island: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.island = nn.Linear(4, 8, bias=False), nn.Linear(8, 4), island
        with torch.no_grad():
            self.first.weight *= wide
            self.second.weight /= wide

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y * torch.sigmoid(y) if self.island else torch.relu(y))


def told(network: nn.Module, unit: float, target: str) -> str:
    data = [(torch.randn(2, 4) * unit,) for _ in range(4)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantize(network.eval(), example_inputs=data[0], calibration=data, target=target)
    said = [str(w.message) for w in caught if issubclass(w.category, EdgeqWarning)]
    return "; ".join(s for s in said if "float16" in s)


@pytest.mark.parametrize("target", ["portable", "coreml"])
def test_tensors_beyond_float16_are_named(target: str) -> None:
    assert "'first/linear' reaches" in told(Pressure(1e6, island=False), 1.0, target)
    assert "'mul' reaches" in told(Pressure(1e6, island=True), 1.0, target)
    assert "'input x' reaches" in told(Pressure(1.0, island=False), 1e6, target)
    assert "'first/linear' has" in told(Pressure(1e-9, island=False), 1.0, target)
    assert "the weight of 'second/linear' has" in told(Pressure(1e8, island=False), 1.0, target)


def test_the_sentence_names_the_runtime_to_leave_out() -> None:
    assert told(Pressure(1e6, island=False), 1.0, "portable").endswith("or leave Core ML out")
    assert told(Pressure(1e-9, island=False), 1.0, "portable").endswith("or leave Core ML out")


@pytest.mark.parametrize("vanishing", [False, True])
def test_constants_without_a_float16_are_simulated_as_the_package_holds_them(vanishing: bool, tmp_path: Path) -> None:
    """Which is large ones in float32: as half they would be infinite, and every integer the end of its range; and small
    ones as the smallest half, so that the package is of no use, as the warning says, but the program's."""
    network, data = Pressure(1e8, island=False).eval(), [(torch.randn(2, 4),) for _ in range(4)]
    network.first.bias = nn.Parameter(torch.randn(8) * 1e7)
    if not vanishing:
        network.second.weight = nn.Parameter(torch.randn(4, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EdgeqWarning)
        model = quantize(network, example_inputs=data[0], calibration=data, target="portable")
    assert model.qparams["first/linear"].scale[0] > 65504
    artifact = export(model, "coreml", folder=tmp_path)
    agree(model, artifact)
    predict = backends.backend("coreml").load(artifact.path)
    step = model.outputs[0].qparams
    assert step is not None
    for batch in data:
        wanted, got = model.simulate(batch, "coreml_fp16")[0], predict(batch)[0]
        assert ((got - wanted).abs() / step.scale[0]).max() < 0.5
        assert vanishing or (wanted - network(*batch)).abs().max() < 3 * step.scale[0]


def test_what_float16_holds_or_coreml_never_sees_is_not_told() -> None:
    assert told(Pressure(100.0, island=True), 100.0, "portable") == ""
    assert told(Pressure(1e6, island=True), 1.0, "litert") == ""


class Island(nn.Module):
    """A float island between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)  # the first layer's scale lies far from a float16
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y * torch.exp(-y.abs()))


def test_an_island_reads_scales_of_half_precision(tmp_path: Path) -> None:
    """As the interpreter of the package does: of 127 steps, half precision moves the last by a twentieth."""
    network = Island().eval()
    data = [(torch.randn(1, 3, 24, 24),) for _ in range(4)]
    kept = ["abs", "neg", "exp", "mul"]
    model = quantize(network, example_inputs=data[0], calibration=data, keep_float=kept)
    assert len(model.integers.ops) == 2 and model.islands
    predict = backends.backend("coreml").load(export(model, "coreml", folder=tmp_path).path)
    step, read = model.outputs[0].qparams, model.qparams["first/conv2d"].scale[0]
    assert step is not None and abs(torch.tensor(read).half().item() / read - 1) > 3e-4
    for batch in data:
        wanted, got = model.simulate(batch, "coreml_fp16")[0], predict(batch)[0]
        assert ((got - wanted).abs() / step.scale[0] < 0.5).float().mean() > 0.999


class Faint(nn.Module):
    """A layer norm of a row whose variance is near its epsilon, between two linear layers, as behind a new class token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 16, bias=False), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) * torch.tensor([[1.0], [1e-4], [1e-3]])
        return self.second(nn.functional.layer_norm(y, (16,), eps=1e-12))


def test_an_epsilon_below_float16_is_simulated_as_the_package_raises_it(tmp_path: Path) -> None:
    data = [(torch.randn(3, 8),) for _ in range(4)]
    model = quantize(Faint().eval(), example_inputs=data[0], calibration=data)
    predict = backends.backend("coreml").load(export(model, "coreml", folder=tmp_path).path)
    step = model.outputs[0].qparams
    assert step is not None
    for batch in data:
        wanted, got = model.simulate(batch, "coreml_fp16")[0], predict(batch)[0]
        assert ((got - wanted).abs() / step.scale[0]).max() < 0.5
