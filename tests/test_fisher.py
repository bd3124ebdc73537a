"""Objective `fisher`: its weights against the expected Fisher information in NumPy, its key, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq import api
from edgeq.calib.objectives import fisher
from edgeq.calib.recipes import RECIPES
from edgeq.calib.view import View
from edgeq.calib.workspace import beside
from edgeq.calib.written import changed
from edgeq.spec import EdgeqError
from edgeq.task import Task

FRAMES = 8
QUICK = ("round.solver=nearest", "round.start=nearest", "reconstruct.steps=2")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small layers on two threads wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Two(nn.Module):
    """Two layers; what they answer is a class, or a distribution over classes, or numbers."""

    def __init__(self, *ends: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first, self.second, self.ends = nn.Linear(4, 6), nn.Linear(6, 3), nn.ModuleList(ends)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """[1, 4] → [1, 3], or what each end makes of it."""
        y: Tensor = self.second(F.relu(self.first(x)))
        made = tuple(end(y) for end in self.ends)
        return y if not made else made[0] if len(made) == 1 else made


class Grown(nn.Module):
    """A hundred times as much."""

    def forward(self, y: Tensor) -> Tensor:
        """As it comes in."""
        return y * 100


def frame(seed: int) -> Tensor:
    return 2 * torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))


def task(network: nn.Module) -> Task:
    network = network.eval()
    return Task("net", lambda: network, lambda: (frame(0),), lambda: [(frame(i),) for i in range(FRAMES)])


def weights(
    network: Two, monkeypatch: pytest.MonkeyPatch, *settings: str, draws: int | None = None
) -> list[np.ndarray]:
    """Of every span's answer for all frames, in forward order; on the way its loss is compared with NumPy's.

    draws: None: every possible draw of signs once, whose mean is the expectation itself.
    """
    seen, begin = list[np.ndarray](), fisher.Fisher.begin

    def spy(self: fisher.Fisher, view: View, size: int) -> None:
        begin(self, view, size)
        (node,), cache = view.ends, view.twins.cache
        found = cache.read(f"fisher {node.name}", 0, FRAMES)
        seen.append(found.double().numpy())
        real = view.twins.real(node, 0, FRAMES)
        wrong = torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
        whole = (seen[-1] * np.square(real.double().numpy())).sum() / FRAMES
        for start, stop in ((0, 2), (3, 4)):
            given = real[start:stop] + wrong[start:stop]
            wanted = (seen[-1][start:stop] * np.square(wrong[start:stop].double().numpy())).sum() / (stop - start)
            np.testing.assert_allclose(self.loss(view, {node: given}, start, stop), wanted / whole, rtol=1e-4)

    def every(like: Tensor, frames: range, seed: str) -> Tensor:
        _, output, draw = seed.split()
        bits = int(draw) >> 3 * int(output)
        return torch.tensor([2.0 * (bits >> i & 1) - 1 for i in range(3)]).expand_as(like)

    with monkeypatch.context() as patch:
        patch.setattr(fisher.Fisher, "begin", spy)
        patch.setattr(fisher, "DRAWS", draws or 2 ** (3 * max(len(network.ends), 1)))
        if draws is None:
            patch.setattr(fisher, "_signs", every)
        api.quantize(task(network), recipe=changed(RECIPES["brecq"], (*QUICK, *settings)), target="simulated")
    return seen


def by_hand(network: Two) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The second layer's weights, its input and its output for all frames, in float64."""
    a, b, c, d = (p.detach().double().numpy() for p in network.parameters())
    hidden = np.maximum(np.concatenate([frame(i).double().numpy() for i in range(FRAMES)]) @ a.T + b, 0)
    return c, hidden, hidden @ c.T + d


@pytest.mark.parametrize("ends", [(), (nn.Softmax(1),), (nn.LogSoftmax(1),)], ids=["logits", "softmax", "log"])
def test_the_weights_of_a_classifier_are_the_expected_fisher_information(
    ends: tuple[nn.Module, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Two(*ends)
    behind, _, logits = by_hand(network)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    slopes = np.eye(3)[None] - p[:, None]  # [frame, label, class]: of log p(label) at the logits
    first = (p[..., None] * np.square(slopes @ behind)).sum(1)
    found = weights(network, monkeypatch)
    np.testing.assert_allclose(found[0], first, rtol=1e-4, atol=1e-6 * first.max())
    np.testing.assert_allclose(found[1], p * (1 - p), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_weights_of_numbers_are_those_of_the_squared_error_in_units_of_each_output(
    scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Two(nn.Identity(), Grown()) if scaled else Two()
    behind, _, outputs = by_hand(network)
    each = np.square(behind).sum(0) / np.square(outputs).mean()
    asked = () if scaled else ("reconstruct.objectives=fisher:squares",)
    found = weights(network, monkeypatch, *asked)[0]
    np.testing.assert_allclose(found, np.broadcast_to(each * (1 + scaled), found.shape), rtol=1e-4)


def test_the_weights_do_not_depend_on_how_many_frames_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for one, three in zip(
        *(weights(Two(), monkeypatch, f"reconstruct.batch={n}", draws=3) for n in (1, 3)), strict=True
    ):
        np.testing.assert_allclose(one, three, rtol=1e-4, atol=1e-6 * one.max())


def learned(name: str, **options: Any) -> Any:
    """Two layers by one objective."""
    settings = ("round.solver=nearest", "reconstruct.steps=100", f"reconstruct.objectives={name}")
    chosen = changed(RECIPES["brecq"], settings)
    return api.quantize(task(Two()), recipe=chosen, target="simulated", precision="w3a8", **options)


def constants(model: Any) -> dict[str, bytes]:
    held = {**model.program.state_dict, **model.program.constants}
    return {name: t.detach().numpy().tobytes() for name, t in held.items() if isinstance(t, Tensor)}


def test_what_was_learned_for_one_objective_does_not_serve_another(tmp_path: Path) -> None:
    def interrupted(stage: str, done: int, total: int | None) -> None:
        if "→" in stage and done == 1:
            raise KeyboardInterrupt

    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        learned("mse", output=out, progress=interrupted)
    assert len(list(beside(out).glob("span-*"))) >= 1
    whole = constants(learned("fisher"))
    assert constants(learned("fisher", output=out)) == whole
    assert constants(learned("mse")) != whole


class Named(nn.Module):
    """Answers with the number of a class."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[1, 4] → int64 [1]."""
        return self.layer(x).argmax(1)


def test_integers_have_no_gradient_which_is_said_before_a_batch_is_read() -> None:
    asked = []

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for i in range(3):
            asked.append(i)
            yield (frame(i),)

    network = Named().eval()
    made = Task("named", lambda: network, lambda: (frame(0),), batches)
    with pytest.raises(EdgeqError, match=r"leave the argmax out of model\(\), or use mse"):
        api.quantize(made, recipe="brecq", target="simulated")
    assert len(asked) <= 1, "the first one alone, with which the network was confirmed"
