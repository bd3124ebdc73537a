"""Whole graphs of LiteRT: what skips, turned readings of one tensor, and names do to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgeq
from edgeq.backends.litert.flatbuffer import schema
from edgeq.backends.litert.lower import lower
from edgeq.graph.package import QuantizedModel
from edgeq.run.verify import verify
from edgeq.spec import Artifact

LAST: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: torch.softmax(x, -1),
    "gelu": nn.functional.gelu,
    "mean": lambda x: x.mean((2, 3)),
    "exp": torch.exp,
    "max pool": lambda x: nn.functional.max_pool2d(x, 2),
}


class Skips(nn.Module):
    """As many residual blocks as asked, and an operator behind them."""

    def __init__(self, skips: int, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, 1, 1) for _ in range(skips + 1))
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x)
        for layer in list(self.layers)[1:]:
            x = x + layer(x)
        return self.last(x)


class Gram(nn.Module):
    """A tensor times its own transpose, on either side and with the other axes."""

    def __init__(self, first: bool, axes: tuple[int, int], rank: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1) if rank == 4 else nn.Linear(5, 4)
        self.first, self.axes = first, axes

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        turned = y.transpose(*self.axes)
        return turned @ y if self.first else y @ turned


def made(
    network: nn.Module, shape: tuple[int, ...], folder: Path, target: str = "portable"
) -> tuple[QuantizedModel, Artifact]:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(shape, generator=generator),) for _ in range(4)]
    task = edgeq.Task("graph", lambda: network.eval(), lambda: data[0], lambda: data)
    model = edgeq.quantize(task, target=target)
    artifact = lower(model.program, folder, name="model", layers=model.labels)
    parity = verify(model, artifact, data)
    for kernels in parity.kernels:
        for output in kernels.outputs:
            assert output.max_lsb < 0.05 if output.equivalent else output.max_lsb == 0, (kernels.kernels, output)
    with torch.no_grad():
        want = network(*data[0])
    assert float((model.qdq(data[0])[0] - want).abs().max()) < 0.1 * float(want.abs().max())
    return model, artifact


@pytest.mark.parametrize("skips", range(4))
@pytest.mark.parametrize("last", LAST)
def test_any_operator_comes_last_behind_skips(skips: int, last: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    _, artifact = made(Skips(skips, LAST[last]), (1, 3, 8, 8), tmp_path)
    model = schema().ModelT.InitFromPackedBuf(artifact.path.read_bytes(), 0)
    names = [t.name for graph in model.subgraphs for t in graph.tensors]
    assert len(set(names)) == len(names)  # other readers look tensors up by name


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("shape", "axes"), [((1, 3, 5, 6), (-1, -2)), ((1, 3, 6, 6), (-1, -2)), ((2, 6, 5), (1, 2))])
@pytest.mark.parametrize("target", ["portable", "litert"])
def test_a_tensor_times_its_own_transpose(
    first: bool, shape: tuple[int, ...], axes: tuple[int, int], target: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made(Gram(first, axes, len(shape)), shape, tmp_path, target)
