"""A search over devices: a phone that goes away in the second round, and an emulated core that counts instructions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_adbd import FakePhone
from test_random_ops import need_device

import edgeq
from edgeq.devices import DeviceLost
from edgeq.home import home
from edgeq.search import search

A53 = "emulated:cortex-a53"


def four_layers() -> edgeq.Task:
    """Four convolutions; the last pair is small, so that their borders matter."""
    torch.manual_seed(0)
    widths = [(3, 16), (16, 32), (32, 32), (32, 8)]
    layers = [m for a, b in widths for m in (torch.nn.Conv2d(a, b, 3, 2 if b == 32 else 1, 1), torch.nn.ReLU())]
    net = torch.nn.Sequential(*layers).eval()
    batches = [(torch.randn(1, 3, 24, 24),) for _ in range(4)]
    return edgeq.Task("four", lambda: net, lambda: batches[0], lambda: batches)


def test_a_phone_that_goes_away_in_round_two_costs_no_measurement(
    plug: Callable[..., FakePhone], tmp_path: Path
) -> None:
    need_device("emulated:cortex-a76")
    board = plug(android=False, arm_root=home() / "arm64-root")
    uniform = search(
        four_layers(), to="litert", device=f"adb:{board.serial}", budget_bytes=10**6, rounds=1, runs=3,
        output=tmp_path / "first",
    )  # fmt: skip
    sizes = sorted(trial["size_bytes"] for trial in uniform["trials"])
    asked: dict[str, Any] = {
        "to": "litert", "device": f"adb:{board.serial}", "budget_bytes": (sizes[0] + sizes[-1]) // 2, "rounds": 2, "runs": 3,
        "output": tmp_path / "out",
    }  # fmt: skip
    done: list[str] = []

    def watch(stage: str, at: int, total: int | None) -> None:
        if stage.startswith("round 2"):
            board.drop_on = "exec ./litert_runner"
        if ": " in stage and at == total == 1:
            done.append(stage)

    lost = False
    try:
        search(four_layers(), **asked, progress=watch)
    except DeviceLost:
        lost = True
    board.drop_on = ""
    plug(board)
    before = len(done)
    found = search(four_layers(), **asked)
    assert found["size_bytes"] <= asked["budget_bytes"] and found["measured_ms"] > 0
    # what was measured before the phone went is not measured again; the winner is, once more
    assert found["measurements"] == len(found["trials"]) - (before if lost else len(found["trials"])) + 1
    assert Path(found["artifact"]).is_file() and found["same_artifact"]


def test_an_emulated_core_is_searched_by_instructions(tmp_path: Path) -> None:
    need_device(A53)
    asked: dict[str, Any] = {"to": "litert", "device": A53, "output": tmp_path / "out"}
    with pytest.raises(edgeq.EdgeqError, match="counts instructions, and its times mean nothing"):
        search(four_layers(), **asked, budget_ms=5.0)
    with pytest.raises(edgeq.EdgeqError, match=r"the fastest that was measured takes [0-9,]+ instructions"):
        search(four_layers(), **asked, budget_instructions=1000, rounds=1)
    wide = search(four_layers(), **asked, budget_bytes=10**6, rounds=2)
    counts = [trial["cost"] for trial in wide["trials"]]
    assert all(count > 10_000 for count in counts) and wide["measured_ms"] is None and wide["instructions"] in counts
    assert [p["instructions"] for p in wide["front"]] and all(p["latency_ms"] is None for p in wide["front"])
