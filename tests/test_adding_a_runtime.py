"""A new runtime is one folder: the skeleton, put beside the others in a copy of edgeq, passes what every runtime has to pass.

Nothing else of edgeq is touched, and it is gone with the copy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TASK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.each = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Linear(12, 5)

    def forward(self, x):
        low = self.stem(x).clamp(0, 6)
        high = self.up(low + self.each(low).relu())
        x = torch.cat([torch.max_pool2d(high, 2), low], 1) * 0.5
        return self.head(x.mean((2, 3))), torch.sin(high)

def model():
    torch.manual_seed(0)
    return Net().eval()

def example_inputs():
    return (torch.zeros(1, 3, 16, 16),)

def calibration():
    for i in range(3):
        yield (torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(i)),)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """edgeq with one more folder in backends/."""
    to = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "edgeq", to / "edgeq", ignore=ignored)  # links become what they lead to
    shutil.copytree(ROOT / "tests" / "skeleton", to / "edgeq" / "backends" / "skeleton", ignore=ignored)
    (to / "task.py").write_text(TASK)
    return to


def ran(tree: Path, *command: str) -> str:
    kept = {"PYTHONPATH": str(tree), "EDGEQ_HOME": str(tree / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=tree, capture_output=True, text=True, check=False, env=os.environ | kept
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("target", ["skeleton", "portable"])
def test_every_verb_knows_it(target: str, tree: Path) -> None:
    """Integers to the byte, islands as closely as the others, on its own target and on the one that all share."""
    edgeq = ("-m", "edgeq.cli")
    ran(tree, *edgeq, "quantize", "task.py", "-o", target, "--target", target)
    coverage = json.loads(ran(tree, *edgeq, "export", target, "--to", "skeleton", "--json"))["backends"]["skeleton"]
    assert coverage["integer_ops"] >= 6 and coverage["float_ops"] >= 1
    found = json.loads(ran(tree, *edgeq, "verify", target, "--to", "skeleton", "--json"))["backends"]["skeleton"]
    ((_, kernels),) = found["kernels"].items()
    integers, sines = kernels["outputs"]
    assert (integers["max_lsb"], integers["exact_share"]) == (0, 1) and sines["max_lsb"] < 0.05
    timed = json.loads(ran(tree, *edgeq, "profile", target, "--to", "skeleton", "--json", "--runs", "5"))
    assert timed["backends"]["skeleton"]["total_ms"]["median"] > 0
    assert "skeleton" in ran(tree, *edgeq, "doctor")


def test_it_holds_what_tests_hold_of_runtimes(tree: Path) -> None:
    """A changed weight of its file is seen before anything runs; no file outside its folder names it."""
    changed = """
import sys, torch, edgeq
from pathlib import Path
from edgeq import backends
from edgeq.graph.integer import read
model = edgeq.load("skeleton")
path = Path("skeleton/skeleton/model.pt2")
program = torch.export.load(path)
assert backends.differing("skeleton", path, model.integers) == []
next(v for k, v in program.state_dict.items() if k.endswith("_int8")).view(-1)[5] ^= 1
torch.export.save(program, "changed.pt2")
print(backends.differing("skeleton", Path("changed.pt2"), model.integers))
"""
    assert "weights of stem/conv2d differ" in ran(tree, "-c", changed)
    named = [p for p in (tree / "edgeq").rglob("*.py") if "skeleton" in p.read_text() and "skeleton" not in p.parts]
    assert not named
