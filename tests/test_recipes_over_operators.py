"""Every recipe runs over operators that no detector has: several results, one-dimensional activations, five axes, loops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq import api, backends
from edgeq.calib.recipes import RECIPES
from edgeq.calib.steps.equalise import Channels, equalise
from edgeq.calib.written import changed
from edgeq.graph.annotate import annotate, default_plan
from edgeq.graph.capture import capture
from edgeq.spec import Recipe
from edgeq.task import Task

LEAST_DB = 15.0  # of these small random networks at eight bits; a wrong lane or a wrong scale gives 0 to 10
CLIPPED_DB = (
    11.0  # entropy cuts off the larger values of a set whose members share a scale, as those of an integer cat do
)


class Layers(nn.Module):
    """Layers for the networks below, each of which takes those it wants."""

    def __init__(self, forward: Callable[[Layers, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.small, self.point = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 8, 1)
        self.wide, self.last, self.gates = nn.Linear(8 * 36, 12), nn.Linear(12, 4), nn.Linear(20, 32)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def chunked(n: Layers, x: Tensor) -> Tensor:
    p, q = F.relu(n.conv(x)).chunk(2, 1)
    return p + n.small(q)


def split(n: Layers, x: Tensor) -> Tensor:
    p, q = torch.split(F.relu(n.conv(x)), [4, 4], 1)
    return torch.cat((n.small(q), p), 1)


def flat(n: Layers, x: Tensor) -> Tensor:
    return n.last(F.relu(n.wide(F.relu(n.conv(x)).flatten())))


def unbound(n: Layers, x: Tensor) -> Tensor:
    return sum(n.last(row) for row in F.relu(n.wide(F.relu(n.conv(x)).flatten(1).repeat(1, 1))).unbind(0))  # type: ignore[return-value] # one row


def largest(n: Layers, x: Tensor) -> Tensor:
    return F.relu(n.point(F.relu(n.conv(x)))).max(1)[0]


def top(n: Layers, x: Tensor) -> Tensor:
    return n.last(F.relu(n.wide(F.relu(n.conv(x)).flatten(1)))).topk(2, 1)[0]


def normed(n: Layers, x: Tensor) -> Tensor:
    y = n.point(F.relu(n.conv(x)))
    return y / (y.norm(dim=1, keepdim=True) + 1)


def five_axes(n: Layers, x: Tensor) -> Tensor:
    y = F.relu(n.conv(x)).reshape(1, 2, 4, 6, 6).transpose(1, 2).reshape(1, 8, 6, 6)
    return n.point(y)


def averaged_channels(n: Layers, x: Tensor) -> Tensor:
    return F.relu(n.conv(F.pad(x, (1, 1, 1, 1)))).mean(
        1
    )  # 8 channels over 8 rows: their axis is gone, the rows' is not


def recurrent(n: Layers, x: Tensor) -> Tensor:
    hidden, cell = x.new_zeros(1, 8), x.new_zeros(1, 8)
    for step in F.relu(n.wide(F.relu(n.conv(x)).flatten(1))).unsqueeze(1).unbind(1) * 2:
        i, f, g, o = n.gates(torch.cat((step, hidden), 1)).chunk(4, 1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
    return hidden


NETWORKS = (chunked, split, flat, unbound, largest, top, normed, five_axes, averaged_channels, recurrent)


def batches() -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(1, 3, 8, 8, generator=generator),) for _ in range(6)]


def made(forward: Callable[[Layers, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return Layers(forward).eval()


def decibel(wanted: Tensor, found: Tensor) -> float:
    return float(10 * torch.log10((wanted**2).sum() / ((found - wanted) ** 2).sum().clamp(min=1e-20)))


def quick(recipe: Recipe) -> Recipe:
    """`recipe` with few steps of learning: that it runs and harms nothing is what is asked here."""
    fewer = {"adaround": ("round.solver=adaround:20",), "flexround": ("round.solver=flexround:20",)}.get(
        recipe.name, ()
    )
    if recipe.name in ("brecq", "lidar-ptq"):
        fewer = ("round.solver=adaround:20", "reconstruct.steps=4")
    return changed(recipe, fewer)


def everything(n: Layers, x: Tensor) -> Tensor:
    return tuple(forward(n, x) for forward in NETWORKS)  # type: ignore[return-value] # an answer of each


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_near_the_users_module(recipe: str) -> None:
    net = made(everything)
    task = Task(
        "operators",
        lambda: net,
        lambda: (torch.zeros(1, 3, 8, 8),),
        batches,
        hooks={"positives": lambda outputs: [torch.ones_like(y) for y in outputs]},
    )
    model = api.quantize(task, target="simulated", recipe=quick(RECIPES[recipe]))
    with torch.no_grad():
        wanted, found = [
            list(zip(*(run(*b) for b in batches()), strict=True)) for run in (net, lambda x: model.qdq((x,)))
        ]
    least = CLIPPED_DB if recipe == "entropy" else LEAST_DB
    for network, real, seen in zip(NETWORKS, wanted, found, strict=True):
        assert decibel(*(torch.cat([y.flatten() for y in side]) for side in (real, seen))) > least, network


@pytest.mark.parametrize("forward", NETWORKS)
def test_equalised_channels_leave_the_function(forward: Callable[[Layers, Tensor], Tensor]) -> None:
    net = made(forward)
    captured = capture(net, (torch.zeros(1, 3, 8, 8),))
    target = backends.target("simulated")
    equalise(captured, annotate(captured, target, default_plan(captured, target, "dfq")), batches(), lambda *_: None)
    with torch.no_grad():
        for batch in batches():
            assert decibel(net(*batch), captured.module(*batch)[0]) > 80


def test_several_results_end_a_lane() -> None:
    channels = Channels(capture(made(chunked), (torch.zeros(1, 3, 8, 8),)))
    assert not any("chunk" in n.name or "getitem" in n.name for n in channels.lanes)
