"""Float parts of a network, which no kernel of ours computes, on every runtime against torch itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeq import backends
from edgeq.graph.capture import capture
from edgeq.graph.convert import float_program
from edgeq.spec import EdgeqError

LSTM, GRU = nn.LSTM(6, 4, batch_first=True), nn.GRU(6, 4, batch_first=True)
RUNTIMES = [name for name in backends.RUNTIMES if name == "coreml" or backends.runs_here(name) == "yes"]
NETWORKS: dict[str, Callable[[Tensor], Tensor | tuple[Tensor, ...]]] = {
    "the last step of an LSTM": lambda x: LSTM(x)[0][:, -1],
    "the last step of a GRU": lambda x: GRU(x)[0][:, -1],
    "indices from the end": lambda x: (
        x[:, -1] * 2,
        x.select(-2, -3) * 2,
        x[:, :, [-1, 0]] * 2,
        x.narrow(1, -3, 2) * 2,
    ),
    "a part from the middle": lambda x: x.narrow(1, 1, 3) * 2,
    "computed indices": lambda x: x[0, (x[0, :, 0] > 0).long() - 1] * 2,
    "the largest of an axis": lambda x: (x * 2).max(1)[0],
    "a chunk that nobody reads": lambda x: torch.cat([x.chunk(3, -1)[0], x.chunk(3, -1)[2]], 1),
    "one number": lambda x: (x * x).mean(),
    "one number beside others": lambda x: x + x.mean(),
}


class Net(nn.Module):
    """A function as a network."""

    def __init__(self, function: Callable[[Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function, self.lstm, self.gru = function, LSTM, GRU

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(x)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_islands_compute_what_torch_does(name: str, runtime: str, tmp_path: Path) -> None:
    net = Net(NETWORKS[name]).eval()
    x = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(2))
    engine = backends.backend(runtime)
    if runtime == "coreml" and name.endswith(("LSTM", "GRU")):
        with pytest.raises(EdgeqError, match="no conversion for the operator"):
            engine.lower(float_program(capture(net, (x,)))[0], tmp_path, name="model", layers={})
        return
    artifact = engine.lower(float_program(capture(net, (x,)))[0], tmp_path, name="model", layers={})
    with torch.no_grad():
        wanted = net(x)
    for got, right in zip(
        engine.load(artifact.path)([x]), wanted if isinstance(wanted, tuple) else (wanted,), strict=True
    ):
        close = {"atol": 2e-2, "rtol": 1e-2} if runtime == "coreml" else {"atol": 1e-5, "rtol": 1e-4}  # float16
        torch.testing.assert_close(got, right, **close)
