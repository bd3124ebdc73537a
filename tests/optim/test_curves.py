"""8-bit AdamW trains as torch's 32-bit AdamW does, and the tool that says so can say the opposite."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from edgeq.optim import AdamW8bit

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Steps this small cost more to hand out to threads than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(TOOLS), *sys.path])
        return import_module("bench_optim_curves")


@pytest.fixture(scope="module")
def zero_gradients() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(TOOLS), *sys.path])
        return import_module("peers.zero_gradients")


def trained(make: Callable[..., torch.optim.Optimizer], seed: int, steps: int = 200) -> list[float]:
    """Losses of a small network that learns what another one, with noise, answers."""
    torch.manual_seed(seed)
    teacher, student = (nn.Sequential(nn.Linear(32, 192), nn.Tanh(), nn.Linear(192, 32)) for _ in range(2))
    optimizer, found = make(student.parameters(), lr=3e-3, weight_decay=0.01), []
    for _ in range(steps):
        x = torch.randn(64, 32)
        with torch.no_grad():
            wanted = 3 * teacher(x) + 0.1 * torch.randn(64, 32)
        loss = nn.functional.mse_loss(student(x), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_8_bit_follows_32_bit(curves: ModuleType) -> None:
    exact, quantized = (np.array([trained(make, seed) for seed in range(2)]) for make in (torch.optim.AdamW, AdamW8bit))
    assert (exact[:, -20:].mean(1) < 0.1 * exact[:, 0]).all()  # there is something to follow
    assert not np.array_equal(exact, quantized)  # and the state has eight bits
    np.testing.assert_allclose(
        curves.smoothed(quantized), curves.smoothed(exact), rtol=0.03
    )  # a rate a fifth smaller is 14 % off


def test_the_verdict_can_be_no(curves: ModuleType) -> None:
    random = np.random.default_rng(0)
    level, noise = random.normal(3, 0.1, (6, 1)), random.normal(0, 0.1, (6, 1000))
    exact, other = np.split(level - level.mean() + 3 + noise, 2)
    near = exact + random.normal(0, 0.02, exact.shape)
    assert curves.verdict(exact, near)["overlap"]
    assert not curves.verdict(exact, near + 3 * exact.mean(1).std(ddof=1))["overlap"]
    bump = np.where((np.arange(1000) > 200) & (np.arange(1000) < 600), 1.0, 0.0)  # ends as the other does
    assert not curves.verdict(exact, near + bump)["overlap"]
    shifted = curves.verdict(exact, other + 0.5)
    pairs = other[:, -200:].mean(1) + 0.5 - exact[:, -200:].mean(1)
    assert shifted["difference"] == pytest.approx(pairs.mean())
    assert shifted["high"] - shifted["low"] == pytest.approx(2 * 4.303 * pairs.std(ddof=1) / 3**0.5)


def test_rows_without_a_gradient_stay(zero_gradients: ModuleType) -> None:
    ours, exact = (zero_gradients.drift(name, 150) for name in ("edgeq.AdamW8bit", "torch.AdamW"))
    assert ours["unseen_largest"] == 0.0
    assert ours["seen_mean"] == pytest.approx(exact["seen_mean"], rel=0.05)


def test_a_word_seen_once_beside_frequent_ones_moves_no_farther_than_in_32_bit() -> None:
    """Its square is lost beside theirs, its momentum is not: a quotient by epsilon would be 10,000 learning rates."""
    frequent = torch.arange(4096) % 1024 == 0
    far = []
    for make in (torch.optim.AdamW, AdamW8bit):
        weight = nn.Parameter(torch.zeros(4096))
        optimizer = make([weight], lr=1e-3)
        for step in range(20):
            weight.grad = torch.where(frequent, 1.0, 1e-4 if step == 0 else 0.0)
            optimizer.step()
        far.append(weight.detach().abs())
    exact, quantized = far
    assert (quantized <= 1.02 * exact).all()
    assert (quantized > 0.05 * exact).all()
