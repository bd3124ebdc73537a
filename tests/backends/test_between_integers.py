"""Operators that only some runtimes compute in integers, between two that all do: float islands where no kernel has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgeq
from edgeq import backends
from edgeq.graph.integer import read
from edgeq.graph.simulate import simulate

RUNTIMES = [name for name in ("tvm", "executorch") if backends.runs_here(name) == "yes"]
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "a product with itself": lambda x: x @ x.transpose(-1, -2),
}


class Gate(nn.Module):
    """A convolution, an operator, a convolution."""

    def __init__(self, curve: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.curve, self.last = nn.Conv2d(3, 4, 1), curve, nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.curve(self.first(x)))  # type: ignore[no-any-return] # modules return Any


@pytest.mark.parametrize("name", NORMS)
def test_what_lies_between_two_convolutions_is_an_island_where_no_kernel_has_it(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Gate(NORMS[name]).eval()
    data = [(torch.randn(1, 3, 5, 5),) for _ in range(4)]
    model = edgeq.quantize(net, example_inputs=data[0], calibration=data)
    for runtime in RUNTIMES:
        engine = backends.backend(runtime)
        artifact = engine.lower(model.program, tmp_path, name=runtime, layers=model.labels)
        assert [row.status for row in artifact.coverage if not row.inserted].count("float island") == 1
        (got,) = engine.load(artifact.path, threads=1)(data[1])
        (want,) = simulate(read(model.program), data[1], engine.target.arithmetic)
        assert torch.equal(got, want), runtime
        assert (got - net(*data[1])).square().sum() < 0.01 * net(*data[1]).square().sum()


@pytest.mark.parametrize("runtime", [r for r in ("litert", "executorch", "tvm") if backends.runs_here(r) == "yes"])
@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(5, 3, 2, count_include_pad=False),
        nn.AvgPool2d(15, 8, 7, count_include_pad=False),
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(3, 2, divisor_override=5),
        nn.Upsample(scale_factor=1.5),
    ],
    ids=str,
)
def test_what_an_integer_kernel_cannot_say_is_an_island(pool: nn.Module, runtime: str, tmp_path: Path) -> None:
    """Averages over windows of unlike counts, which ExecuTorch divided by the whole size, and nearest pixels by a fraction."""
    torch.manual_seed(0)
    net = Gate(pool).eval()
    data = [(torch.randn(1, 3, 14, 14),) for _ in range(4)]
    model = edgeq.quantize(net, example_inputs=data[0], calibration=data)
    engine = backends.backend(runtime)
    artifact = engine.lower(model.program, tmp_path, name=runtime, layers=model.labels)
    for kernels, arithmetic in (
        engine.target.kernel_sets("") if runtime == "litert" else (("", engine.target.arithmetic),)
    ):
        (got,) = engine.load(artifact.path, threads=1, **({"kernels": kernels} if kernels else {}))(data[1])
        (want,) = simulate(model.integers, data[1], arithmetic)
        assert torch.equal(got, want), kernels
        assert (got - net(*data[1])).square().sum() < 0.01 * net(*data[1]).square().sum()
