"""A clone's files, without what was built in it, and wheels made of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = (
    "pyproject.toml",
    "setup.py",
    "README.md",
    "LICENSE",
    "edgeq",
    "calib",
    "backends",
    "examples",
    "tools",
    "native",
)


def cloned(folder: Path) -> Path:
    """What a package is made of, its links kept, in the new `folder`; returns it."""
    folder.mkdir()
    for name in PARTS:
        if (ROOT / name).is_dir():
            left_out = shutil.ignore_patterns("__pycache__", "_native*")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=left_out)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def built(source: Path, kind: str, folder: Path) -> Path:
    """A wheel or source archive of `source`, made in the new `folder` by the build backend that pip calls."""
    folder.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    (made,) = folder.iterdir()
    return made
