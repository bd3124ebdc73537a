"""What `quantize` takes beside a network: batches, layers kept in float, a plan, `evaluate()`; else a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import trained
from torch import Tensor, nn

from edgeq import Task, export, quantize
from edgeq.graph.capture import leaves_like
from edgeq.run.metric import evaluate, float_metric
from edgeq.spec import EdgeqError, EdgeqWarning

X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def test_a_network_beside_what_it_needs() -> None:
    net = trained()
    model = quantize(net, example_inputs=X, calibration=[X, X], evaluate=lambda predict: {"sum": predict(X)[0].sum()})
    assert model.name == "Sequential" and "0/conv2d" in model.qparams
    assert torch.equal(model.qdq(X)[0], model.qdq((X,))[0]) and torch.equal(model.float(X)[0], model.float([X])[0])
    assert torch.equal(model.simulate(X, "ideal")[0], model.simulate((X,), "ideal")[0])
    for wrong, said in (
        (lambda: quantize(net), "needs example_inputs="),
        (lambda: quantize(3), "was given a int: give a torch"),  # type: ignore[arg-type] # what it must refuse
        (lambda: quantize("none.py", calibration=[X]), "a task has its own"),
        (lambda: quantize(net, example_inputs=X, calibration=[X], target=["litert"]), "target is a list"),  # type: ignore[arg-type]
    ):
        with pytest.raises(EdgeqError, match=said):
            wrong()


def given(**more: Any) -> Any:
    """A quantized network of four layers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)), nn.Conv2d(2, 2, 1))
    return quantize(net, example_inputs=X, calibration=[X], **more)


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("1.*", ["1.0", "1.1"]),
        ("1", ["1.0", "1.1"]),
        ("2/conv2d", ["2"]),
        ("*.1", ["1.1"]),
        ("*conv2d", ["0", "1.0", "1.1", "2"]),
    ],
)
def test_patterns_of_layers_stay_in_float(pattern: str, kept: list[str]) -> None:
    model = given(keep_float=[pattern])
    assert sorted(model.islands) == [f"{path}/conv2d" for path in kept]


def test_a_pattern_that_matches_nothing_names_what_is_near() -> None:
    with pytest.raises(EdgeqError, match=r"no layer matches '1\.0/conv'; near it are '1\.0/conv2d'"):
        given(keep_float=["1.0/conv"])


def test_a_plan_may_list_the_exceptions_alone(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"target": "portable", "recipe": "default", "layers": {"1.0/conv2d": "fp32"}}')
    model = given(plan=tmp_path / "plan.json")
    assert list(model.islands) == ["1.0/conv2d"] and model.plan.layers["2/conv2d"] == "w8a8"
    (tmp_path / "plan.json").write_text('{"target": ["portable", "litert"], "recipe": "default", "layers": {}}')
    with pytest.raises(EdgeqError, match=r"target is .*a plan has one"):
        given(plan=tmp_path / "plan.json")


def test_evaluate_is_asked_before_anything_is_calibrated() -> None:
    def broken(predict: Any) -> dict[str, float]:
        return {"top1": predict(X)[1].sum()}

    with pytest.raises(EdgeqError, match=r"evaluate\(\) failed: IndexError"):
        given(evaluate=broken)
    with pytest.raises(EdgeqError, match=r"evaluate\(\) returned 3"):
        given(evaluate=lambda predict: 3)


def test_batches_as_arrays_and_with_labels() -> None:
    image, label = np.ones((1, 3, 8, 8), np.float32), torch.tensor([3])
    for given in (image, [image], (image,), X.half(), [X]):
        (leaf,) = leaves_like((X,), given, "calibration batch 0")
        assert isinstance(leaf, Tensor) and leaf.dtype == torch.float32 and leaf.shape == X.shape
    with pytest.warns(EdgeqWarning, match="calibration batch: its last element is taken for a label and left out"):
        assert len(leaves_like((X,), (X, label), "calibration batch 0")) == 1
    with pytest.warns(
        EdgeqWarning, match="label"
    ):  # of a loader with larger batches; what is wrong with those is said by shape
        (larger,) = leaves_like((X,), (torch.cat([X] * 4), torch.arange(4)), "calibration batch 0")
    assert larger.shape[0] == 4
    with pytest.raises(EdgeqError, match="has 2 tensors"):
        leaves_like((X,), (X[0], label), "calibration batch 0")


def test_batches_of_another_size_go_in_slices() -> None:
    net = trained().eval()
    many = torch.randn(5, 3, 8, 8)
    seen: list[Tensor] = []

    def measure(predict: Any) -> dict[str, float]:
        seen.append(predict(many)[0])
        return {"sum": seen[-1].sum()}

    model = quantize(net, example_inputs=many[:2], calibration=[many[:2]])
    task = Task("t", lambda: net, lambda: many[:2], None, measure)
    found, other = float_metric(task, model), evaluate(task, model.float)
    with torch.no_grad():
        wanted = net(many)
    for got in seen:
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert found is not None and other is not None and found["sum"] == pytest.approx(float(wanted.sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda net, x: quantize(type(net), example_inputs=x, calibration=[x]), "was given the class Sequential"),
        (
            lambda net, x: quantize(net, example_inputs=x, calibration=[x], plan={"0": "fp32"}),
            "plan is a dict: give a QuantPlan",
        ),
        (lambda net, x: quantize(net, example_inputs=x, calibration=[x], output=5), "output is a int: give the path"),
        (lambda net, x: quantize(net, example_inputs=x, calibration=[x], recipe=3), "recipe is a int: give a name"),
        (
            lambda net, x: quantize(net, example_inputs=x, calibration=[x], target=["tvm"]),
            "portable is the target for all",
        ),
        (
            lambda net, x: export(quantize(net, example_inputs=x, calibration=[x]), ["tvm"]),
            "to is a list: export to one",
        ),
        (
            lambda net, x: quantize(net, example_inputs=x, calibration=[x]).qdq(x[0][:, :1]),
            r"takes inputs of shape \(1, 3\)",
        ),
    ],
)
def test_arguments_of_another_type_are_one_sentence(act: Callable[[nn.Module, Any], Any], said: str) -> None:
    with pytest.raises(EdgeqError, match=said):
        act(nn.Sequential(nn.Linear(3, 2)).eval(), (torch.randn(1, 3),))


class Apart(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Twice [1, 4] → [1, 4]."""
        return self.layer(a) + b


class Listed(nn.Module):
    """A list of two."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, parts: list[Tensor]) -> Tensor:
        """Twice [1, 4] → [1, 4]."""
        return self.layer(parts[0]) + parts[1]


@pytest.mark.parametrize("network", [Apart, Listed])
def test_a_list_of_inputs_is_what_forward_takes_it_for(network: type[nn.Module]) -> None:
    net = network().eval()
    a, b = torch.randn(1, 4), torch.randn(1, 4)
    model = quantize(net, example_inputs=[a, b], calibration=[[a, b]] if network is Apart else [([a, b],)])
    with torch.no_grad():
        wanted = net(a, b) if network is Apart else net([a, b])
    assert float((model.qdq((a, b))[0] - wanted).abs().max()) < 0.1


def test_one_input_may_stand_in_a_list() -> None:
    net, x = nn.Linear(4, 4).eval(), torch.randn(1, 4)
    model = quantize(net, example_inputs=[x], calibration=[[x]])
    assert float((model.qdq(x)[0] - net(x)).abs().max()) < 0.1
