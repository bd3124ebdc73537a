"""The training tool leaves the package's weights alone until the last step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file

from edgeq.lidar.detectors import DETECTORS

TOOL = Path(__file__).parents[2] / "tools" / "train_detector.py"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The tool with a package folder of its own and next to no scenes to paste from."""
    spec = importlib.util.spec_from_file_location("train_detector", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(module, "BANK_SCENES", 1)
    return module


def test_only_a_finished_run_writes_into_the_package(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name, steps = "centerpoint_pillar", []
    shipped, snapshot = tmp_path / "weights" / f"{name}.safetensors", tmp_path / "work" / f"{name}.safetensors"
    real = tool.losses

    def run(interrupted_at: int | None) -> None:
        def losses(*arguments: Any) -> Any:
            steps.append(0)
            if len(steps) == interrupted_at:
                raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(tool, "losses", losses)
        command = [str(TOOL), name, "--steps", "2", "--batch", "1", "--device", "cpu", "--work", str(tmp_path / "work")]
        monkeypatch.setattr("sys.argv", command)
        tool.main()

    run(interrupted_at=2)
    assert snapshot.is_file() and not shipped.exists()
    run(interrupted_at=None)
    assert len(steps) == 3, "one step, the interrupted one, and the same again"
    assert shipped.read_bytes() == snapshot.read_bytes()
    wanted = DETECTORS[name].network().state_dict()
    assert {k: v.shape for k, v in load_file(shipped).items()} == {k: v.shape for k, v in wanted.items()}
