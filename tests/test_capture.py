"""Capture keeps the function, folds what can be folded, and says in a sentence what it cannot take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import ALL, InvertedResidual, TwoInputs, inputs, seeded
from torch import Tensor, nn

from edgeq.graph.capture import capture, flatten
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


def test_example_inputs_may_lie_in_memory_in_any_order() -> None:
    """A view from NumPy has stride 0 along a new axis, a permuted tensor swapped ones; runtimes refuse both."""
    example = torch.from_numpy(np.zeros((4, 5, 3), np.float32)[None]).permute(0, 3, 1, 2)
    captured = capture(nn.Conv2d(3, 2, 1), (example,))
    assert captured.example[0].stride() == (60, 20, 5, 1)
    inputs = [n.meta["val"].stride() for n in captured.module.graph.nodes if n.op == "placeholder"]
    assert inputs == [(60, 20, 5, 1)]
