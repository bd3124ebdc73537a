"""The optimizers' kernel on an emulated Arm core leaves the bytes that it leaves here."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "check_native.py"


@pytest.mark.skipif(
    not (shutil.which("qemu-aarch64") and shutil.which("aarch64-linux-gnu-g++")),
    reason="tools/device_setup.sh installs both",
)
def test_neon_leaves_the_same_bytes(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("check_native", TOOL)
    assert spec is not None and spec.loader is not None
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    here = check.lines(tmp_path / "here", "g++", ["-O3"], [], 1)
    there = check.lines(tmp_path / "arm", "aarch64-linux-gnu-g++", ["-O3", "-static"], ["qemu-aarch64"], 2)
    assert len(there) == 28 and {line.split()[0] for line in there} == {"plain"}
    assert check.disagreements([*here, *there]) == []
