"""Files and folders that are whole or not there: written beside their place, flushed to the disk, and exchanged by a rename.

A process that dies on the way leaves a part behind, `.NAME.PID.part`; the next one that writes in that place removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


@contextlib.contextmanager
def file(path: Path) -> Iterator[Path]:
    """The path of a file to write; when the body ends well it takes the place of `path`, else it is removed."""
    part = _part(path)
    try:
        yield part
        _flush(part)
        part.replace(path)
    except BaseException:  # Ctrl-C too
        part.unlink(missing_ok=True)
        raise
    _flush(path.parent)


@contextlib.contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A fresh folder to fill; when the body ends well it takes the place of `path` at once, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    try:
        part.mkdir()
        yield part
        for inner in part.rglob("*"):
            _flush(inner)
        _flush(part)
        _exchange(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)  # what stood there before, or what was not finished
    _flush(path.parent)


def forget_parts(path: Path) -> None:
    """Remove what processes that are gone left of `path`."""
    for found in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        owner = re.fullmatch(r"\d+", found.name.removesuffix(".part").rsplit(".", 1)[-1])
        if owner is None or _alive(int(owner[0])):
            continue
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found, ignore_errors=True)
        else:
            found.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    forget_parts(path)
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # what this process left when it wrote here before
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


def _exchange(part: Path, path: Path) -> None:
    """Put `part` in the place of `path`, and what stands there in that of `part`; by one system call where there is one."""
    if not path.exists():
        part.rename(path)
        return
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None, use_errno=True), "renameat2"):
        if libc.renameat2(AT_FDCWD, os.fsencode(part), AT_FDCWD, os.fsencode(path), RENAME_EXCHANGE) == 0:
            return
    old = part.with_name(f"{part.name.removesuffix('.part')}.old.{os.getpid()}.part")
    path.rename(old)
    try:
        part.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    """To the disk, so that a rename behind it is never seen without its content; where that is not possible, nothing."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
