"""What only moves values stays in integers, however it is spelt: against the user's own module, and on every runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeq
from edgeq import backends
from edgeq.graph.capture import capture

Move = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A move of [1, 8, 8, 8] between two convolutions."""

    def __init__(self, move: Move) -> None:
        super().__init__()
        self.move, self.stem = move, nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(move(torch.zeros(1, 8, 8, 8)).shape[1], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.move(self.stem(x)))


def focus(x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


def windows(x: Tensor) -> Tensor:
    """As a shifted window transformer has them."""
    x = x.roll((-1, -1), (2, 3)).view(1, 8, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(4, 8, 4, 4)
    return x.reshape(1, 2, 2, 8, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(1, 8, 8, 8).roll((1, 1), (2, 3))


MOVES: dict[str, Move] = {
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "chunk, one of them": lambda x: x.chunk(3, 1)[1],
    "split": lambda x: torch.cat(x.split([2, 6], 1)[::-1], 1),
    "split, rest": lambda x: x.split(3, 1)[2],
    "tensor_split": lambda x: torch.cat(x.tensor_split(3, 1)[::-1], 1),
    "unbind": lambda x: torch.stack(x.unbind(1)[:3], 1),
    "unbind from behind": lambda x: torch.stack(x.unbind(-1), 2),
    "select": lambda x: torch.stack([x[:, 0], x[:, -1]], 1),
    "stack, last": lambda x: torch.stack([x, x * 1.0], -1).flatten(3),
    "narrow": lambda x: x.narrow(1, -4, 2),
    "roll": lambda x: x.roll((3, -9), (2, 3)),
    "roll by nothing": lambda x: x.roll(8, 1),
    "flip": lambda x: x.flip((1, 3)),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "tile": lambda x: x.tile(2, 1, 1),
    "expand": lambda x: x[:, :1].expand(-1, 8, -1, -1),
    "expand beside a sum": lambda x: x + x[:, :, :1].expand_as(x),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 1),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 4),
    "index": lambda x: x[:, [3, 1, 2, -1]],
    "index_select": lambda x: x.index_select(2, torch.tensor([0, 1, 2, 6])),
    "steps": lambda x: x[:, ::2],
    "steps, not whole": lambda x: x[:, :, 1::3],
    "steps of a part": lambda x: x[:, :, 1:6:2, 2:7:3],
    "focus": focus,
    "reflect": lambda x: F.pad(x, (2, 1, 0, 3), mode="reflect"),
    "replicate": lambda x: F.pad(x, (2, 1, 0, 3), mode="replicate"),
    "circular": lambda x: F.pad(x, (2, 1, 0, 3), mode="circular"),
    "ReflectionPad2d": nn.ReflectionPad2d(1),
    "windows": windows,
    "amax": lambda x: x.amax((2, 3), keepdim=True),
    "adaptive maximum": lambda x: F.adaptive_max_pool2d(x, 1),
    "adaptive maximum, windows": lambda x: F.adaptive_max_pool2d(x, (2, 4)),
    "max_pool1d": lambda x: F.max_pool1d(x.flatten(2), 5, 4, 2).view(1, 8, 4, 4),
    "avg_pool1d": lambda x: F.avg_pool1d(x.flatten(2), 4, 4).view(1, 8, 4, 4),
    "adaptive average, 1-D": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1).unsqueeze(-1),
    "max_pool3d": lambda x: F.max_pool3d(x.unsqueeze(1), 3, 2, 1).squeeze(1),
    "max_pool3d, depth": lambda x: F.max_pool3d(x.unsqueeze(1), (2, 1, 1)).squeeze(1),
    "avg_pool3d": lambda x: F.avg_pool3d(x.unsqueeze(1), 2).squeeze(1),
    "adaptive average, 3-D": lambda x: F.adaptive_avg_pool3d(x.view(1, 8, 2, 4, 8), 1).flatten(3),
    "adaptive average, windows": lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
}


@pytest.mark.parametrize("name", MOVES)
def test_it_stays_in_integers_and_is_the_same_move(name: str) -> None:
    """The captured graph against the module to the last bits of float sums; the program close to it, with no float operator."""
    torch.manual_seed(0)
    module, batches = Between(MOVES[name]).eval(), [(torch.randn(1, 3, 8, 8),) for _ in range(2)]
    wanted = module(*batches[0]).detach()
    captured = capture(module, batches[0])
    torch.testing.assert_close(captured.module(*batches[0])[0], wanted, rtol=1e-5, atol=1e-6)
    model = edgeq.quantize(module, example_inputs=batches[0], calibration=batches)
    assert model.integers.floats == () and model.islands == {}
    error = model.qdq(batches[0])[0] - wanted
    assert 10 * torch.log10(wanted.square().mean() / error.square().mean()) > 30


@pytest.mark.parametrize("runtime", backends.RUNTIMES)
def test_every_runtime_moves_the_same_bytes(runtime: str, tmp_path: Path) -> None:
    """All of them in one network, each behind a ReLU as an output of its own."""

    class Every(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, x: Tensor) -> list[Tensor]:
            x = self.stem(x)
            return [move(x).relu() for move in MOVES.values()]

    torch.manual_seed(0)
    batches = [(torch.randn(1, 3, 8, 8),) for _ in range(2)]
    model = edgeq.quantize(
        Every().eval(), example_inputs=batches[0], calibration=batches, output=tmp_path / "model", recipe="minmax"
    )
    artifact = edgeq.export(model, runtime)
    assert not [row for row in artifact.coverage if row.status == "float island" and not row.inserted]
    found = edgeq.verify(model, to=[runtime])["backends"][runtime]
    assert (found["max_lsb"], found["exact_share"]) == (0, 1)


def test_too_many_pieces_stay_one_operator() -> None:
    """A mirrored row of 64 would be 64 slices."""
    captured = capture(nn.Sequential(nn.Conv2d(1, 1, 1), Flip()).eval(), (torch.randn(1, 1, 2, 64),))
    names = [getattr(n.target, "__name__", "") for n in captured.module.graph.nodes if n.op == "call_function"]
    assert names == ["conv2d.default", "flip.default"]


class Flip(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flip(3)
