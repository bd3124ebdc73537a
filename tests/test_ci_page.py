"""docs/ci.md: the workflow's commands run as they stand, on a small task."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "ci.md"
TASK = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)

def calibration():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1, 3, 8, 8, generator=generator),) for _ in range(3)]
"""


def test_the_workflow_runs_as_it_stands(tmp_path: Path) -> None:
    steps = [shlex.split(step) for step in re.findall(r"- run: (edgeq .*)", PAGE.read_text())]
    assert [step[1] for step in steps] == ["quantize", "export", "verify", "diff"]
    (tmp_path / "my_task.py").write_text(TASK)
    for step in steps:
        if step[1] == "export":
            shutil.copytree(tmp_path / "out", tmp_path / "baseline")
        command = [sys.executable, "-m", "edgeq.cli", *step[1:]]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
    assert "<testcase" in (tmp_path / "verify.xml").read_text() and (tmp_path / "out" / "litert").is_dir()
