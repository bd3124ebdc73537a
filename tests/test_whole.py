"""Files and folders that are whole or not there, whoever dies on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeq import whole


def dead() -> int:
    """The number of a process that is gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_what_a_dead_process_left_is_removed_and_a_living_ones_kept(tmp_path: Path) -> None:
    left = tmp_path / f".out.{dead()}.part"
    left.mkdir()
    (left / "half").touch()
    living = tmp_path / f".out.{os.getppid()}.part"
    living.mkdir()
    with whole.folder(tmp_path / "out") as part:
        (part / "a").write_text("a")
    assert sorted(p.name for p in tmp_path.iterdir()) == [living.name, "out"]


def test_a_failed_body_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyError), whole.folder(tmp_path / "out") as part:
        (part / "new").touch()
        raise KeyError
    with pytest.raises(KeyError), whole.file(tmp_path / "file") as part:
        part.write_text("new")
        raise KeyError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out"]
    assert (tmp_path / "out" / "old").is_file() and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("platform", [sys.platform, "one without an exchange by one call"])
def test_the_place_is_taken_by_the_new_folder(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole.sys, "platform", platform)
    for name in ("a", "b"):
        with whole.folder(tmp_path / "[out]*") as part:  # a name that a glob would read
            (part / name).touch()
    assert [p.name for p in tmp_path.iterdir()] == ["[out]*"]
    assert [p.name for p in (tmp_path / "[out]*").iterdir()] == ["b"]


def test_a_reader_never_finds_the_folder_missing(tmp_path: Path) -> None:
    """A second process looks as fast as it can while the folder is replaced a hundred times."""
    out = tmp_path / "out"
    out.mkdir()
    watch = f"import os\nwhile not os.path.exists({str(tmp_path / 'end')!r}):\n    assert os.path.isdir({str(out)!r})"
    reader = subprocess.Popen([sys.executable, "-c", watch], stderr=subprocess.PIPE)
    for _ in range(100):
        with whole.folder(out):
            pass
    (tmp_path / "end").touch()
    assert reader.wait(timeout=60) == 0, reader.stderr and reader.stderr.read()
