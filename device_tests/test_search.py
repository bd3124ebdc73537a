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


def test_a_phone_that_goes_away_costs_no_measurement(plug: Callable[..., FakePhone], tmp_path: Path) -> None:
    need_device("emulated:cortex-a76")
    board = plug(android=False, arm_root=home() / "arm64-root")
    asked: dict[str, Any] = {
        "to": "tvm-arm64", "device": f"adb:{board.serial}", "budget_bytes": 10**6, "precisions": ("w8a8", "fp32"), "rounds": 1,
        "runs": 3, "output": tmp_path / "out",
    }  # fmt: skip

    def watch(stage: str, at: int, total: int | None) -> None:
        if stage == "fp32 everywhere":  # the second plan
            board.drop_on = "exec ./tvm_runner"

    with pytest.raises(DeviceLost, match="what was measured is kept"):
        search(four_layers(), **asked, progress=watch)
    assert not (tmp_path / "out").exists()
    board.drop_on = ""
    plug(board)
    found = search(four_layers(), **asked)
    assert found["measured_ms"] > 0 and len(found["trials"]) >= 2
    assert found["measurements"] == len(found["trials"]) - 1 + 1  # all but the first, and the winner once more
    assert Path(found["artifact"]).is_file() and found["same_artifact"]


def test_an_emulated_core_is_searched_by_instructions(tmp_path: Path) -> None:
    need_device(A53)
    asked: dict[str, Any] = {"to": "litert", "device": A53, "output": tmp_path / "out"}
    with pytest.raises(edgeq.EdgeqError, match="counts instructions, and its times mean nothing"):
        search(four_layers(), **asked, budget_ms=5.0)
    with pytest.raises(edgeq.EdgeqError, match=r"the fastest that was measured takes [0-9,]+ instructions"):
        search(four_layers(), **asked, budget_instructions=1000, rounds=1)
    wide = search(four_layers(), **asked, budget_bytes=10**6, rounds=1)
    counts = [trial["cost"] for trial in wide["trials"]]
    assert all(count > 10_000 for count in counts) and wide["measured_ms"] is None and wide["instructions"] in counts
    assert [p["instructions"] for p in wide["front"]] and all(p["latency_ms"] is None for p in wide["front"])
