"""A device whose programs run on this machine, directly or through an emulator: a temporary folder and its processes."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeq.device import Device, Finished, beside, inside
from edgeq.spec import EdgeqError


class Local(Device):
    """A temporary folder, removed on close; subclasses say how a program is started."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """Where files lie and commands run; made on first use."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="edgeq-"))
        return self._folder

    def put(self, local: Path, remote: str) -> None:
        """Copy unless the same bytes lie there."""
        target = self.folder / inside(remote)
        if not local.is_file():
            raise EdgeqError(f"{local}: no such file to put on {self.name}")
        if target.is_file() and filecmp.cmp(local, target, shallow=False):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(local, target)

    def get(self, remote: str, local: Path) -> None:
        """Copy back."""
        source = self.folder / inside(remote)
        if not source.is_file():
            raise EdgeqError(f"{self.name}: no file {remote} was written there")
        _copy(source, local)

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        count: bool = False,
    ) -> Finished:
        """Run as it is; counting needs an emulator."""
        if count:
            raise EdgeqError(f"{self.name} cannot count instructions; emulated devices do")
        own = self.folder / command[0]
        started = [str(own) if own.is_file() else command[0], *command[1:]]
        return self.start(started, command, {**os.environ, **(environment or {})}, timeout_s)

    def start(
        self, started: Sequence[str], command: Sequence[str], environment: Mapping[str, str], timeout_s: float
    ) -> Finished:
        """Start a process in the folder and wait; `command` is what the user knows it as."""
        try:
            process = subprocess.Popen(
                started,
                cwd=self.folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # its children end with it
            )
        except OSError as error:
            raise EdgeqError(f"{self.name} cannot start {command[0]}: {error.strerror}") from None
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise not_finished(self.name, command, timeout_s) from None
            raise
        return Finished(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))

    def close(self) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def not_finished(name: str, command: Sequence[str], timeout_s: float) -> EdgeqError:
    """The sentence for a command that took too long."""
    return EdgeqError(f"{name}: {command[0]} was not finished after {timeout_s:g} s and was stopped")


def _copy(source: Path, target: Path) -> None:
    partial = beside(target)
    try:
        shutil.copyfile(source, partial)
        shutil.copymode(source, partial)
        partial.replace(target)
    except OSError as error:
        raise EdgeqError(f"cannot write {target}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
