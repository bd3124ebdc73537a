"""Capture keeps the function, folds what can be folded, and says in a sentence what it cannot take."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import ALL, InvertedResidual, TwoInputs, inputs, seeded
from torch import Tensor, nn

from edgeq import Task, quantize
from edgeq.graph.capture import capture, flatten, leaves_like
from edgeq.graph.ops import kind_of
from edgeq.spec import EdgeqError

aten = torch.ops.aten


@pytest.mark.parametrize("network", ALL)
def test_captured_graph_computes_what_the_module_does(network: type[nn.Module]) -> None:
    model, example = seeded(network), inputs(network)
    captured = capture(model, example)
    other = inputs(network, seed=7)
    with torch.no_grad():
        wanted, got = flatten(model(*other)), captured.module(*flatten(other))
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_batch_norm_is_gone_and_the_model_untouched() -> None:
    model = seeded(InvertedResidual)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    captured = capture(model, inputs(InvertedResidual))
    targets = {n.target for n in captured.module.graph.nodes}
    assert not targets & {aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default}
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_names_of_nested_inputs_and_outputs() -> None:
    captured = capture(seeded(TwoInputs), inputs(TwoInputs))
    assert [i.name for i in captured.inputs] == ["x", "extra_depth"]
    assert [o.shape for o in captured.outputs] == [(1, 4, 8, 8), (1, 4), (1, 4, 8, 8)]
    assert len({o.name for o in captured.outputs}) == 3


def test_layer_keys_are_unique_and_name_the_module() -> None:
    captured = capture(seeded(InvertedResidual), inputs(InvertedResidual))
    keys = list(captured.keys.values())
    assert len(set(keys)) == len(keys)
    assert {"stem.0/conv2d", "depthwise.0/depthwise_conv2d", "head/linear", "add"} <= set(keys)


class Reused(nn.Module):
    """One convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x)))


def test_a_layer_used_twice_has_two_keys() -> None:
    keys = capture(Reused(), (torch.randn(1, 3, 8, 8),)).keys.values()
    assert {"conv/conv2d", "conv/conv2d#2"} <= set(keys)


class Padded(nn.Module):
    """Explicit zero padding before convolutions, even and uneven."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.pad(self.a(F.pad(x, (1, 1, 1, 1))), (0, 1, 0, 1)))


def test_even_padding_moves_into_the_convolution_and_uneven_stays() -> None:
    model, example = Padded().eval(), (torch.randn(1, 3, 9, 9),)
    captured = capture(model, example)
    kinds = [kind_of(n) for n in captured.module.graph.nodes if n.op == "call_function"]
    assert kinds == ["conv2d", "pad", "conv2d"]
    with torch.no_grad():
        torch.testing.assert_close(captured.module(*example)[0], model(*example))


class LoneNorm(nn.Module):
    """BatchNorm with nothing before it to fold into."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x)))


def test_a_lone_batch_norm_becomes_a_depthwise_convolution() -> None:
    torch.manual_seed(1)
    model = LoneNorm()
    model.norm.running_mean.normal_()  # type: ignore[union-attr] # a buffer
    model.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr] # a buffer
    model.eval()
    example = (torch.randn(1, 3, 6, 6),)
    captured = capture(model, example)
    assert "depthwise_conv2d" in [kind_of(n) for n in captured.module.graph.nodes]
    with torch.no_grad():
        torch.testing.assert_close(captured.module(*example)[0], model(*example), rtol=1e-5, atol=1e-6)


class InPlace(nn.Module):
    """Writes into a slice of its own activation."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x)
        y[:, :2] *= 2
        return y


def test_in_place_writes_are_functionalised() -> None:
    example = (torch.randn(1, 4, 3, 3),)
    captured = capture(InPlace(), example)
    torch.testing.assert_close(captured.module(*example)[0], InPlace()(*example))


class Branching(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_data_dependent_control_flow_is_one_sentence() -> None:
    with pytest.raises(EdgeqError) as error:
        capture(Branching(), (torch.randn(1, 3),))
    message = str(error.value)
    assert "Branching" in message and "data" in message and "\n" not in message and len(message) < 600


def test_a_constant_output_is_refused() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            return x + 1, 3

    with pytest.raises(EdgeqError, match="constant"):
        capture(Constant(), (torch.randn(1, 3),))


class Shortcut(nn.Module):
    """Option-A shortcut of CIFAR ResNets: every second pixel, zero channels around."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))


def test_subsampling_becomes_a_kernel_that_every_runtime_has() -> None:
    example = (torch.randn(1, 3, 9, 8),)
    captured = capture(Shortcut(), example)
    kinds = [kind_of(n) for n in captured.module.graph.nodes if n.op == "call_function"]
    assert kinds == ["depthwise_conv2d", "pad"]
    assert torch.equal(captured.module(*example)[0], Shortcut()(*example))


@pytest.mark.parametrize("shuffle", [nn.PixelShuffle(2), nn.PixelUnshuffle(2)], ids=["shuffle", "unshuffle"])
def test_pixel_shuffle_moves_integers_everywhere(shuffle: nn.Module) -> None:
    net = nn.Sequential(shuffle, nn.Conv2d(2 if isinstance(shuffle, nn.PixelShuffle) else 32, 4, 1)).eval()
    x = torch.randn(3, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    captured = capture(net, (x,))
    (found,) = flatten(captured.module(x))
    assert torch.equal(found, net(x))
    task = Task("shuffled", lambda: net, lambda: (x,), lambda: [(x,)])
    assert quantize(task).integers.floats == ()


def test_example_inputs_may_lie_in_memory_in_any_order() -> None:
    """A view from NumPy has stride 0 along a new axis, a permuted tensor swapped ones; runtimes refuse both."""
    example = torch.from_numpy(np.zeros((4, 5, 3), np.float32)[None]).permute(0, 3, 1, 2)
    captured = capture(nn.Conv2d(3, 2, 1), (example,))
    assert captured.example[0].stride() == (60, 20, 5, 1)
    inputs = [n.meta["val"].stride() for n in captured.module.graph.nodes if n.op == "placeholder"]
    assert inputs == [(60, 20, 5, 1)]


class Function(nn.Module):
    """A function of the modules it is given."""

    def __init__(self, function: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleDict(parts)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self.parts, *inputs)


class Counter(nn.Module):
    """Keeps a count of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)  # type: ignore[operator] # a buffer
        return x + self.count


X = torch.randn(1, 3, 8, 8)
REFUSED: dict[str, tuple[nn.Module, tuple[Any, ...], str]] = {
    "a number as input": (Function(lambda _, x, k: x * k), (X, 0.5), r"example_inputs\(\)\[1\] is a float: give tensors"),
    "None as input": (Function(lambda _, x, k: x), (X, None), r"example_inputs\(\)\[1\] is None"),
    "double": (nn.Conv2d(3, 2, 1), (X.double(),), r"example_inputs\(\)\[0\] is torch.float64.*\.float\(\)"),
    "a shape by data": (Function(lambda _, x: x[x > 0]), (X,), r"shape of .*depends on the data \(at .*test_capture.py:\d+\)"),
    "a state": (Counter(), (X,), "Counter: forward changes its buffer 'count'.*keeps no state"),
    "a constant": (Function(lambda _, x: (x, None, 3)), (X,), "output 2 of the network.* is the constant 3"),
    "statistics of the batch": (
        Function(lambda m, x: m["norm"](x), norm=nn.BatchNorm2d(3, track_running_stats=False)),
        (X,), "parts.norm: a BatchNorm with track_running_stats=False",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_captured_is_one_sentence(case: str) -> None:
    model, example, message = REFUSED[case]
    with pytest.raises(EdgeqError, match=message) as error:
        capture(model, example)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_control_flow_is_told_in_plain_words_with_its_line() -> None:
    with pytest.raises(EdgeqError, match=r"decides by a value.*\(at .*test_capture\.py:\d+\)") as error:
        capture(Branching(), (torch.randn(1, 3),))
    assert "unhinted" not in str(error.value)


def chosen(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def test_control_flow_in_what_forward_calls_is_told_with_its_own_line() -> None:
    line = inspect.getsourcelines(chosen)[1] + 1
    with pytest.raises(EdgeqError, match=rf"decides by a value.*\(at .*test_capture\.py:{line}\)"):
        capture(Function(lambda _, x: chosen(x * 2)), (X,))


def test_a_weight_computed_of_parameters_is_folded_too() -> None:
    torch.manual_seed(0)
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        conv.parametrizations.weight.original0.mul_(1.7)  # type: ignore[union-attr, operator] # a gain that is not the norm
    norm = nn.BatchNorm2d(4)
    norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr] # a buffer
    model = Function(lambda m, x: m["norm"](m["conv"](x)), conv=conv, norm=norm).eval()
    captured = capture(model, (X,))
    assert [kind_of(n) for n in captured.module.graph.nodes if n.op == "call_function"] == ["conv2d"]
    with torch.no_grad():
        torch.testing.assert_close(captured.module(X)[0], model(X), rtol=1e-5, atol=1e-6)


def test_names_of_outputs_differ_and_pass_over_none() -> None:
    model = Function(lambda _, x: {"n": None, "a": [x * 2], "a_0": x * 3, "a_0_1": x * 4})
    assert [o.name for o in capture(model, (X,)).outputs] == ["a_0", "a_0_1", "a_0_1_1"]


def test_batches_are_put_in_order_by_their_keys() -> None:
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    example = ({"x": a, "y": [b, {"z": c}]},)
    for given in (
        ({"y": (b, {"z": c}), "x": a},),
        {"y": [b, {"z": c}], "x": a},
        [{"x": a, "y": [b, {"z": c}]}],
        (a, b, c),
    ):
        assert [t.numel() for t in leaves_like(example, given, "batch 0")] == [1, 2, 3]
    for given, message in (
        ({"x": a}, "batch 0 lacks 'y'"),
        ({"x": a, "y": [b, {"z": c}], "w": a}, "batch 0 has 'w', which"),
        ({"x": a, "y": [b, {"w": c}]}, "batch 0 lacks 'z'"),
        ({"x": a, "y": [b]}, "batch 0 has 1 tensors, nested otherwise"),
        ((a, b), "batch 0 has 2 tensors, nested otherwise"),
    ):
        with pytest.raises(EdgeqError, match=message):
            leaves_like(example, given, "batch 0")
