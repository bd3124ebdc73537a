"""The package as others get it: a wheel, and the wheel that is built from the source archive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from clone import built, cloned

LINKS = ("calib", "backends", "examples", "runners")

TASK = """
import torch

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5))

def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)

def calibration():
    torch.manual_seed(1)
    return [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds, its links kept, without what was built in it."""
    return cloned(tmp_path_factory.mktemp("clone") / "edgeq")


def test_wheels_of_clone_and_archive_are_alike_and_work(source: Path, tmp_path: Path) -> None:
    archive = built(source, "sdist", tmp_path / "sdist")
    shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheels = [built(folder, "wheel", tmp_path / name) for folder, name in ((source, "one"), (unpacked, "two"))]
    names = [sorted(zipfile.ZipFile(wheel).namelist()) for wheel in wheels]
    assert names[0] == names[1]
    for expected in (
        "calib/recipes.py",
        "backends/litert/lower.py",
        "examples/resnet20_cifar10.py",
        "runners/executorch.cpp",
    ):
        assert f"edgeq/{expected}" in names[0]
    assert not [n for n in names[0] if not n.startswith(("edgeq/", "edgeq-"))], "nothing lands beside edgeq"

    venv.create(tmp_path / "env", symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheels[1]],
        check=True,
    )
    (site / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")  # torch and the rest
    (tmp_path / "task.py").write_text(TASK)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"EDGEQ_HOME": str(tmp_path / "home")}

    def edgeq(*arguments: str) -> str:
        code = "from edgeq.cli import main; main()"
        done = subprocess.run(
            [python, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import edgeq.calib; print(edgeq.calib.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    edgeq("quantize", "task.py", "-o", "out")
    edgeq("export", "out", "--to", "litert")
    assert json.loads(edgeq("verify", "out", "--json"))["backends"]["litert"]["max_lsb"] == 0


@pytest.mark.parametrize("link", LINKS)
def test_a_clone_without_links_says_so(link: str, source: Path, tmp_path: Path) -> None:
    """As git leaves it on a system without them: a text file that holds the link's target."""
    clone = tmp_path / "clone"
    shutil.copytree(source, clone, symlinks=True)
    target = (clone / "edgeq" / link).readlink()
    (clone / "edgeq" / link).unlink()
    (clone / "edgeq" / link).write_text(str(target))
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"edgeq/{link} is no folder") and "core.symlinks=true" in done.stderr
