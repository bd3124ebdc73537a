"""What nobody foresaw: one sentence with the layer and the user's line, exit code 3, and the traceback in a file."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeq import fault

RUN = "import sys; from edgeq import api, cli; sys.argv = ['edgeq', 'doctor']\n"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x).relu()  # the line a fault in its relu names


def ended(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A command whose verb does what `code` says."""
    environment = {**os.environ, "EDGEQ_HOME": str(folder)}
    command = [sys.executable, "-c", f"{RUN}{code}\napi.doctor = broken\ncli.main()"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_a_fault_is_one_sentence_and_three(tmp_path: Path) -> None:
    done = ended("def broken(): return {}['no such key']", tmp_path)
    assert done.returncode == 3 and done.stdout == "" and "Traceback" not in done.stderr
    (file,) = (tmp_path / "faults").iterdir()
    assert done.stderr.count("\n") == 1 and "doctor failed (KeyError: 'no such key')" in done.stderr
    assert "a fault in edgeq" in done.stderr and str(file) in done.stderr
    assert "in broken" in file.read_text()


def test_a_fault_told_in_a_row_is_told_once_and_still_three(tmp_path: Path) -> None:
    done = ended("def broken():\n    from edgeq.fault import Told\n    raise Told('tvm: profile failed')", tmp_path)
    assert done.returncode == 3 and done.stderr == "edgeq: tvm: profile failed\n"
    assert not (tmp_path / "faults").exists()


def test_a_fault_where_nothing_can_be_kept_still_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "faults").write_text("a file where the folder should be")
    done = ended("def broken(): raise AssertionError", tmp_path)
    assert done.returncode == 3 and "a fault in edgeq" in done.stderr
    file = re.search(r"lies in (\S+)", done.stderr)
    assert file is not None and "AssertionError" in Path(file[1]).read_text()
    Path(file[1]).unlink()


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (f"OSError({errno.ENOSPC}, 'No space left on device', 'model.pte')", "model.pte: the disk is full"),
        ("RuntimeError('[enforce fail] PytorchStreamWriter failed writing file data/0')", "the disk is full"),
        ("MemoryError()", "memory does not suffice"),
    ],
)
def test_a_machine_without_room_is_no_fault(raised: str, said: str, tmp_path: Path) -> None:
    done = ended(f"def broken(): raise {raised}", tmp_path)
    assert done.returncode == 2 and said in done.stderr and "fault in edgeq" not in done.stderr


def test_torch_without_memory_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.int8)
    assert "memory does not suffice" in fault.beyond_the_machine(caught.value)


def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    code = "def broken():\n  import os, errno\n  raise BrokenPipeError(errno.EPIPE, 'Broken pipe')"
    done = ended(code, tmp_path)
    assert done.returncode == 1 and done.stderr == ""


def test_the_layer_and_the_users_line_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_HOME", str(tmp_path))
    graph = torch.export.export(Net(), (torch.zeros(1, 4),)).graph

    def visit() -> None:
        for node in graph.nodes:
            if "relu" in str(node.target):
                raise ValueError("what no one foresaw")

    with pytest.raises(ValueError, match="foresaw") as caught:
        visit()
    said = fault.sentence(caught.value, "export")
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if "a fault in its relu" in text)
    assert "aten.relu.default" in said and f"{__file__}:{line}" in said and said.startswith("export failed at layer ")
