"""Task files that misbehave, strange homes, two commands at once: one sentence, or the result where it belongs."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq.calib.workspace import beside
from edgeq.home import home
from edgeq.spec import EdgeqError
from edgeq.task import load_task

TASK = """
import os, torch
{top}
def model():
    torch.manual_seed(0)
    {model}
    return torch.nn.Conv2d(3, 4, 3)
def example_inputs():
    return (torch.zeros(1, 3, 6, 6),)
def calibration():
    for _ in range(2):
        {calibration}
        yield (torch.rand(1, 3, 6, 6),)
"""


def written(folder: Path, top: str = "", model: str = "", calibration: str = "") -> Path:
    path = folder / "task.py"
    path.write_text(TASK.format(top=top, model=model, calibration=calibration))
    return path


def quantize(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeq.cli", "quantize", "task.py", "-o", "out", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300
    )


def test_what_a_task_prints_is_not_part_of_the_result(tmp_path: Path) -> None:
    loud = "print('from python'); os.system('echo from a program')"
    written(tmp_path, top=loud, model=loud, calibration=loud)
    done = quantize(tmp_path, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["model"] == "task"
    assert done.stderr.count("from python") == 4 and done.stderr.count("from a program") == 4


def test_a_task_that_changes_the_folder_moves_nothing(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    written(tmp_path, top="os.chdir('elsewhere')", calibration="os.chdir('/')")
    done = quantize(tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").is_file() and list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("place", ["top", "model", "calibration"])
def test_a_task_that_exits_is_a_sentence(place: str, tmp_path: Path) -> None:
    written(tmp_path, **{place: "raise SystemExit(0)"})
    done = quantize(tmp_path)
    assert done.returncode == 2 and "SystemExit" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{'mean': torch.ones(3)}", r"PREPROCESSING\['mean'\] is a Tensor, and travels as JSON; write its tolist"),
        ("{'a': [1, {'b': float('nan')}]}", r"PREPROCESSING\['a'\]\[1\]\['b'\] is nan, which JSON cannot say"),
        ("{1: 2}", "has the key 1; keys are strings"),
        ("[1, 2]", "PREPROCESSING is a list; write a dictionary"),
        ("{'loop': []}; PREPROCESSING['loop'].append(PREPROCESSING)", "holds itself"),
    ],
)
def test_preprocessing_is_plain(value: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeqError, match=said):
        load_task(written(tmp_path, top=f"PREPROCESSING = {value}"))


def test_a_second_learner_is_told_of_the_first(tmp_path: Path) -> None:
    """The first one is a process that holds the workspace's lock, as a learner does from its first batch to its last."""
    written(tmp_path)
    workspace = beside(tmp_path / "out")
    workspace.mkdir()
    (workspace / "workspace.json").touch()
    handle = os.open(workspace, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    done = quantize(tmp_path, "--recipe", "adaround")
    os.close(handle)
    assert done.returncode == 2 and "another edgeq quantize is learning there" in done.stderr
    assert quantize(tmp_path, "--recipe", "adaround").returncode == 0 and not workspace.exists()


def test_a_damaged_span_is_learned_again(tmp_path: Path) -> None:
    written(tmp_path)
    assert quantize(tmp_path, "--recipe", "adaround").returncode == 0
    wanted = (tmp_path / "out" / "weights.safetensors").read_bytes()
    workspace = beside(tmp_path / "out")
    workspace.mkdir()
    (workspace / "workspace.json").write_text("{half")
    (workspace / "span-000.safetensors").write_bytes(b"no span")
    assert quantize(tmp_path, "--recipe", "adaround").returncode == 0
    assert (tmp_path / "out" / "weights.safetensors").read_bytes() == wanted


def test_a_home_that_is_none_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_HOME", "~there-is-no-such-user/x")
    with pytest.raises(EdgeqError, match="set EDGEQ_HOME to a folder, or to off"):
        home()
    monkeypatch.setenv("EDGEQ_HOME", "off")
    assert home() == home() and home().is_dir()
    code = "from edgeq.home import home; print(home())"
    passing = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert passing and not Path(passing).exists()
