"""Linux boards through OpenSSH's own client: one connection, which every command shares (ControlMaster)."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO

from edgeq.device import STEP_S, Finished
from edgeq.devices.shell import Refused, Shell
from edgeq.spec import EdgeqError

LOST = 255  # ssh's own exit status; a program's own 255 is told as 254
SLOWEST = 100e3  # bytes a second below which a transfer counts as stalled
ALIVE = ("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3")  # a dead line is noticed after 15 s


class Ssh(Shell):
    """A machine by USER@HOST[:PORT], reached with the user's own keys and ~/.ssh/config; never asks for a password."""

    folder = ".edgeq-device"  # below the user's home there

    def __init__(self, where: str, *, step_s: float = STEP_S) -> None:
        """Connect.

        Raises:
            EdgeqError: not a name of that form, no ssh client, or ssh's own reason.
        """
        super().__init__(f"ssh:{where}", step_s)
        match = re.fullmatch(
            r"(?:([A-Za-z0-9_.][^@:\s]*)@)?([A-Za-z0-9_.][^@:\s]*|\[[0-9A-Fa-f:]+\])(?::([0-9]+))?", where
        )
        if match is None:
            raise EdgeqError(f"ssh:{where}: write ssh:USER@HOST or ssh:USER@HOST:PORT")
        program = shutil.which("ssh")
        if program is None:
            raise EdgeqError("ssh is not installed: tools/device_setup.sh installs it on Debian")
        user, host, port = match[1], match[2].strip("[]"), match[3]
        # a socket's path may have 107 characters at most, so not where TMPDIR is deep
        near = tempfile.gettempdir()
        self._control = Path(tempfile.mkdtemp(prefix="edgeq-ssh-", dir=near if len(near) < 60 else "/tmp"))
        end = [*(["-p", port] if port else []), "--", f"{user}@{host}" if user else host]
        self._place = _place(program, end) or self.name
        shared = [program, "-T", "-o", "BatchMode=yes", "-o", f"ControlPath={self._control / 's'}"]
        # without the shared connection a command fails at once instead of making one of its own
        self._client = [*shared, "-o", "ControlMaster=no", "-o", "ProxyCommand=false", *end]
        self._master: subprocess.Popen[bytes] | None = None
        connect = [
            *shared,
            "-o",
            "ControlMaster=yes",
            "-o",
            f"ConnectTimeout={max(int(step_s / 2), 1)}",
            *ALIVE,
            "-N",
            *end,
        ]
        try:
            self._connect(connect)
        except BaseException:
            self.release()
            raise

    @property
    def place(self) -> str:
        """User, host and port, by ssh's own reading of the name and of ~/.ssh/config."""
        return self._place

    def _connect(self, command: list[str]) -> None:
        said = self._control / "said"
        with said.open("wb") as errors:
            self._master = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
        deadline = time.monotonic() + self.step_s
        while not (self._control / "s").exists():
            if self._master.poll() is not None:
                lines = [line for line in said.read_text(errors="replace").splitlines() if line.strip()]
                raise EdgeqError(f"{self.name}: {_reason(lines)}")
            if time.monotonic() > deadline:
                raise EdgeqError(f"{self.name}: no connection after {self.step_s:g} s; is it on, and on this network?")
            time.sleep(0.02)

    def execute(self, script: str, timeout_s: float) -> Finished:
        """Run by the POSIX shell there, whatever the login shell is."""
        return self._remote(script, timeout_s)

    def send(self, local: Path, path: str) -> None:
        """`cat` into it; every Linux has that, not every one sftp."""
        with local.open("rb") as file:
            done = self._remote(f"cat >{shlex.quote(path)}", self._patience(local.stat().st_size), stdin=file)
        if done.status:
            raise Refused(done.stderr.strip().rpartition("\n")[2] or f"status {done.status}")

    def fetch(self, path: str, local: Path) -> None:
        """`cat` out of it."""
        size = self._remote(f"wc -c <{shlex.quote(path)}", self.step_s).stdout.strip()
        with local.open("wb") as file:
            patience = self._patience(int(size) if size.isdigit() else 0)
            done = self._remote(f"cat <{shlex.quote(path)}", patience, stdout=file)
        if done.status:
            raise Refused(done.stderr.strip().rpartition("\n")[2] or f"status {done.status}")

    def release(self) -> None:
        """End the shared connection."""
        if self._master is not None and self._master.poll() is None:
            self._master.terminate()
            try:
                self._master.wait(2)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
        shutil.rmtree(self._control, ignore_errors=True)

    def _patience(self, size: int) -> float:
        return self.step_s + size / SLOWEST

    def _remote(
        self, script: str, timeout_s: float, *, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None
    ) -> Finished:
        wrapped = f"sh -c {shlex.quote(script)}; s=$?; [ $s = {LOST} ] && s=254; exit $s"
        process = subprocess.Popen(
            [*self._client, f"exec sh -c {shlex.quote(wrapped)}"],
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException as error:
            process.kill()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()  # not read to its end: the shared connection has it open too
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise TimeoutError from None
            raise
        if process.returncode == LOST or process.returncode < 0:
            raise self.lost()
        return Finished(process.returncode, (out or b"").decode(errors="replace"), err.decode(errors="replace"))


def _place(program: str, end: list[str]) -> str:
    """`ssh:user@hostname:port` of what ssh would connect to; empty where it does not tell (before OpenSSH 6.8)."""
    done = subprocess.run([program, "-G", *end], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
    known = done.returncode == 0 and {"user", "hostname", "port"} <= told.keys()
    return f"ssh:{told['user']}@{told['hostname']}:{told['port']}" if known else ""


def _reason(said: list[str]) -> str:
    """ssh's complaint as advice."""
    text = " ".join(said)
    if "Host key verification failed" in text:
        return "its host key is not known here; connect once with ssh by hand and confirm it"
    if "Permission denied" in text:
        return "it does not take this user's keys; copy one there with ssh-copy-id, or name it in ~/.ssh/config"
    return said[-1].removeprefix("ssh: ") if said else "ssh ended without a word"
