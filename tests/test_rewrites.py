"""Constants, choices, reductions and transposed convolutions between integers: no float is left, on any runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeq
from edgeq import backends
from edgeq.graph.capture import capture

Function = Callable[[Tensor], Tensor]


def numbers(*shape: int) -> Tensor:
    """From -2 to 2, none of them 0; made without random numbers, which a captured network may not draw."""
    return (2 * torch.sin(1 + torch.arange(math.prod(shape), dtype=torch.float32))).reshape(shape)


def prelu(*slopes: float) -> Function:
    return lambda x: F.prelu(x, torch.tensor(slopes).repeat(4))


def transposed(outputs: int, groups: int, **ways: int) -> Function:
    weight = numbers(8, outputs // groups, 3, 3)
    return lambda x: F.conv_transpose2d(x, weight, numbers(outputs), groups=groups, **ways)


# of [1, 8, 8, 8], behind a convolution
FUNCTIONS: dict[str, Function] = {
    "frozen norm": lambda x: x.relu() * numbers(8, 1, 1) + numbers(1, 8, 1, 1),
    "norm of pixels": lambda x: (x.relu() - numbers(8, 1, 1)) / numbers(1, 8, 1, 1),
    "layer scale": lambda x: numbers(8) * F.gelu(x),
    "layer scale before a layer": lambda x: F.linear(numbers(8) * F.gelu(x), numbers(4, 8)),
    "whole constant": lambda x: x.relu() + numbers(1, 8, 8, 8),
    "positions": lambda x: x.flatten(2).transpose(1, 2) + numbers(1, 64, 8),
    "class token": lambda x: torch.cat([numbers(1, 1, 8), x.flatten(2).transpose(1, 2)], 1) + numbers(1, 65, 8),
    "prelu": prelu(0.1, 0.4),
    "prelu, descending": prelu(-0.1, -0.4),
    "prelu, both": prelu(0.3, -0.2),
    "maximum": lambda x: torch.maximum(x, x.flip(3)),
    "minimum": lambda x: torch.min(x, x.flip(2)),
    "maximum of a constant": lambda x: torch.maximum(numbers(8, 1, 1), x),
    "clamp": lambda x: x.clamp(-numbers(8, 1, 1).abs(), numbers(1, 8, 1, 1).abs()),
    "where": lambda x: torch.where(x > 0.1, x.flip(2), -x),
    "sum, plane": lambda x: x * x.sum((2, 3), keepdim=True),
    "sum, channels": lambda x: x.sum(1, keepdim=True),
    "sum, last": lambda x: x.sum(-1),
    "mean, channels": lambda x: x.mean(1),
    "mean, tokens": lambda x: x.flatten(2).transpose(1, 2).mean(1),
    "amax, channels": lambda x: x.amax(1, keepdim=True),
    "max, tokens": lambda x: x.flatten(2).max(-1).values,
    "amin": lambda x: x + x.amin((2, 3), keepdim=True),
    "pyramid": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "unfold": lambda x: F.unfold(x, (3, 2), dilation=2, padding=1, stride=2),
    "transposed, depthwise": transposed(8, 8, stride=2, padding=1, output_padding=1),
    "transposed, groups": transposed(12, 2, stride=3),
    "transposed, dilated": transposed(4, 1, stride=2, dilation=2, padding=3),
    "transposed, cropped": transposed(8, 4, stride=1, padding=3),
    "transposed, 1-D": lambda x: F.conv_transpose1d(x.flatten(2), numbers(8, 4, 4), None, 2, 1),
}  # fmt: skip

SOME = {  # one of each form, for what takes long
    name: FUNCTIONS[name]
    for name in (
        *("frozen norm", "positions", "class token", "prelu, both", "maximum", "where", "sum, plane", "sum, last"),
        *("mean, channels", "amax, channels", "amin", "pyramid", "unfold", "transposed, depthwise", "transposed, 1-D"),
    )
}  # fmt: skip


class Every(nn.Module):
    """Each of `functions` of one convolution, with another behind, as an output of its own."""

    def __init__(self, *functions: Function) -> None:
        super().__init__()
        self.functions, self.stem = functions, nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [self.head(function(x).reshape(1, 1, -1, 1)) for function in self.functions]


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(1, 3, 8, 8),) for _ in range(2)]


@pytest.fixture(scope="module")
def model(batches: list[tuple[Tensor]], tmp_path_factory: pytest.TempPathFactory) -> edgeq.QuantizedModel:
    torch.manual_seed(0)
    given: dict[str, Any] = {"example_inputs": batches[0], "calibration": batches, "recipe": "minmax"}
    return edgeq.quantize(Every(*SOME.values()).eval(), output=tmp_path_factory.mktemp("every") / "m", **given)


def test_the_captured_graph_is_the_module(batches: list[tuple[Tensor]]) -> None:
    """To the last bits of float sums, on inputs that capture did not see."""
    torch.manual_seed(0)
    module = Every(*FUNCTIONS.values()).eval()
    captured = capture(module, batches[0])
    for name, wanted, got in zip(FUNCTIONS, module(*batches[1]), captured.module(*batches[1]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_integers_are_near_float(model: edgeq.QuantizedModel, batches: list[tuple[Tensor]]) -> None:
    assert model.integers.floats == () and model.islands == {}
    for name, ideal, got in zip(SOME, model.float(batches[0]), model.qdq(batches[0]), strict=True):
        error = 10 * torch.log10(ideal.square().mean() / (got - ideal).square().mean())
        assert error > 27, f"{name}: {error:.1f} dB"


@pytest.mark.parametrize("runtime", backends.RUNTIMES)
def test_every_runtime_gives_the_same_bytes(model: edgeq.QuantizedModel, runtime: str) -> None:
    artifact = edgeq.export(model, runtime)
    assert not [row for row in artifact.coverage if row.status == "float island" and not row.inserted]
    found = edgeq.verify(model, to=[runtime])["backends"][runtime]
    assert (found["max_lsb"], found["exact_share"]) == (0, 1)
