"""Every verb, at every operation on a file: killed, interrupted, or on a disk that is full, read-only or broken.

After it: no traceback; the model folder is the old one or the new one, never absent or half; the same command then ends
well with the same bytes, and nothing is left over.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import edgeq
import edgeq.api  # what a verb imports, so that its forks need not
from edgeq.graph.store import hash_of, read_manifest
from faults.crash import ERRORS, SIGNALS, Fault, run

TASK = """
import torch
def model():
    torch.manual_seed(0)
    return torch.nn.Conv2d(3, 4, 3)
def example_inputs():
    return (torch.zeros(1, 3, 6, 6),)
def calibration():
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(1, 3, 6, 6, generator=generator),) for _ in range(2)]
"""
VERBS = {
    "quantize": ["quantize", "task.py", "-o", "out"],
    "quantize again": ["quantize", "task.py", "-o", "out", "--recipe", "minmax"],
    "export": ["export", "out", "--to", "tvm"],
    "verify": ["verify", "out", "--to", "tvm"],
    "profile": ["profile", "out", "--to", "tvm", "--runs", "4", "--warmup", "1"],
    "report": ["report", "out"],
}
BEFORE = {"quantize": (), "quantize again": ("quantize",), "export": ("quantize",), "verify": ("quantize", "export")}
BEFORE["profile"] = ("quantize", "export")
BEFORE["report"] = ("quantize", "export", "verify")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, as forks of a process with more of them may wait for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def content(root: Path) -> dict[str, str]:
    """Hashes of all files below `root`, and its folders, without Python's caches."""
    found = (p for p in root.rglob("*") if "__pycache__" not in p.parts)
    return {p.relative_to(root).as_posix(): "folder" if p.is_dir() else hash_of(p) for p in found}


@pytest.mark.parametrize("fault", [*SIGNALS, *ERRORS])
@pytest.mark.parametrize("verb", VERBS)
def test_nothing_is_lost_at_any_point(verb: str, fault: Fault, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "task.py").write_text(TASK)
    for earlier in BEFORE[verb]:
        assert run(VERBS[earlier], place).code == 0
    shutil.copytree(place, tmp_path / "start")
    old = hash_of(place / "out" / "manifest.json") if (place / "out").is_dir() else None
    clean = run(VERBS[verb], place)
    assert clean.code == 0 and clean.operations > 0, clean.said
    wanted = content(place)
    new = wanted["out/manifest.json"]
    every = 4 if verb == "profile" else 1  # most of its operations are those of its float twin's export
    points = list(range(0, clean.operations, every))
    if fault != "kill":  # what a signal or an error leaves is what a kill leaves, less what was tidied up
        one = verb in ("export", "profile")
        points = points[len(points) // 2 :][:1] if one else points[:: 1 + len(points) // 3]
    for at in points:
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "start", place)
        ended = run(VERBS[verb], place, fault, at)
        assert "Traceback" not in ended.said, f"{fault} at {at}: {ended.said}"
        if fault in ERRORS and ended.code:
            assert ended.code in (1, 2), f"{fault} at {at}: {ended.said}"
        there = (place / "out" / "manifest.json").is_file()
        assert there or old is None, f"{fault} at {at}: the model is gone"
        if verb.startswith("quantize") and there:
            assert hash_of(place / "out" / "manifest.json") in (old, new)
            read_manifest(place / "out")
            edgeq.load(place / "out")
        again = run(VERBS[verb], place)
        assert again.code == 0, f"after {fault} at {at}: {again.said}"
        left = content(place)
        if verb == "profile":  # two runs measure two times
            json.loads((place / "out" / "profile.json").read_text())
            assert left.keys() == wanted.keys(), f"after {fault} at {at} of {clean.operations}"
        else:
            assert left == wanted, f"after {fault} at {at} of {clean.operations}"
