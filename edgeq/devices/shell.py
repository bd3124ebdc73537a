"""A device behind a POSIX shell, whatever carries it: sending only what changed, running, fetching, tidying up.

Everything there lies in one folder. A file is sent as `NAME.partial`, checked by its SHA-256 on the device and renamed.
What lies there is known by the device's own hashes, read once, so a run that follows an interrupted one sends only what
is missing. A run that ends well leaves nothing; after an error the folder stays for the next run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO

from edgeq.device import AGAIN, STEP_S, Device, DeviceLost, Finished, beside, digest, inside
from edgeq.devices import describe
from edgeq.devices.local import not_finished
from edgeq.home import home
from edgeq.spec import DeviceInfo, EdgeqError

HASHED_PER_S = 20e6  # bytes; a slow board's sha256sum does this much a second, most do ten times as much

# a program left behind by an interrupted run: known by its number, and by standing in our folder
KILL = 'p=$(cat .pid 2>/dev/null) && [ "$(readlink "/proc/$p/cwd")" = "$(pwd -P)" ] && kill -9 "$p"'
PREPARE = f"""
command -v sha256sum >/dev/null || {{ echo 'it has no sha256sum' >&2; exit 1; }}
mkdir -p FOLDER && cd FOLDER || exit 1
{KILL}
rm -f .pid
find . -type f -name '*.partial' -exec rm -f {{}} +
find . -type f -exec sha256sum {{}} +
"""


class Refused(Exception):
    """The device answered that it will not: its own words."""


class Shell(Device):
    """What adb and ssh have in common; they add how a script is run and how bytes travel."""

    folder: str  # edgeq's own there, absolute or below the folder where a shell starts

    def __init__(self, name: str, step_s: float = STEP_S) -> None:
        self._name = name
        self.step_s = step_s
        self._doing = "it was asked what it is"  # for the sentence when it goes away
        self._there: dict[str, str] | None = None  # remote name → SHA-256, once the folder is prepared
        self._folders: set[str] = set()
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """As on the command line."""
        return self._name

    @property
    def place(self) -> str:
        """The machine that is meant, however it is called: what a lock is on."""
        return self._name

    @abstractmethod
    def execute(self, script: str, timeout_s: float) -> Finished:
        """Run a shell script there.

        Raises:
            TimeoutError: not finished in time, or no answer. DeviceLost: the connection broke.
        """

    @abstractmethod
    def send(self, local: Path, path: str) -> None:
        """Write the file's bytes to `path` there.

        Raises:
            Refused: in the device's words. TimeoutError, DeviceLost: as above.
        """

    @abstractmethod
    def fetch(self, path: str, local: Path) -> None:
        """Write the bytes of `path` there to `local`; what is missing at the end is for the caller to find.

        Raises:
            Refused, TimeoutError, DeviceLost: as above.
        """

    @abstractmethod
    def release(self) -> None:
        """Let go of the connection; raises nothing."""

    def describe(self) -> DeviceInfo:
        """Ask /proc, /sys and, on Android, getprop."""
        self._doing = "it was asked what it is"
        done = self._step(describe.SCRIPT)
        info = describe.read(self.name, done.stdout)
        if info is None:
            raise EdgeqError(f"{self.name}: what it says of itself came truncated; run the same command again")
        return info

    def put(self, local: Path, remote: str) -> None:
        """Send, check, rename."""
        remote = inside(remote)
        if not local.is_file():
            raise EdgeqError(f"{local}: no such file to put on {self.name}")
        there, wanted = self._prepared(), digest(local)
        if there.get(remote) == wanted:
            return
        there.pop(remote, None)
        self._doing = f"{remote} was sent"
        parent = str(PurePosixPath(remote).parent)
        if parent not in ("", ".", *self._folders):
            self._ask(f"mkdir -p {shlex.quote(parent)}")
            self._folders.add(parent)
        partial = f"{remote}.partial"
        try:
            self.send(local, f"{self.folder}/{partial}")
        except Refused as words:
            raise self._refusal(local, remote, str(words)) from None
        except TimeoutError:
            raise self._silent() from None
        mode = "755" if os.access(local, os.X_OK) else "644"
        size = local.stat().st_size
        quoted = shlex.quote(partial)
        settled = self._ask(
            f'set -- $(sha256sum <{quoted}); [ "$1" = {wanted} ] || {{ wc -c <{quoted}; rm -f {quoted}; exit 9; }}\n'
            f"chmod {mode} {quoted} && mv -f {quoted} {shlex.quote(remote)}",
            self.step_s + size / HASHED_PER_S,
            allowed=(0, 9),
        )
        if settled.status == 9:
            raise EdgeqError(
                f"{self.name}: {remote} arrived damaged ({settled.stdout.strip() or 0} of {size} bytes); check the cable, "
                "then run the same command again"
            )
        there[remote] = wanted

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        count: bool = False,
    ) -> Finished:
        """Run in the folder; what takes too long is killed there."""
        if count:
            raise EdgeqError(f"{self.name} cannot count instructions; emulated devices do")
        there = self._prepared()
        self._doing = f"{command[0]} ran"
        own = command[0] in there
        words = [f"./{command[0]}" if own else command[0], *command[1:]]
        variables = [f"export {_variable(key)}={shlex.quote(value)}" for key, value in (environment or {}).items()]
        lines = [f"cd {self.folder} || exit 125", "echo $$ >.pid", *variables, f"exec {shlex.join(words)}"]
        try:
            done = self.execute("\n".join(lines), timeout_s)
        except TimeoutError:
            self._doing = f"{command[0]} was stopped"
            self._step(f"cd {self.folder} && {KILL}")
            raise not_finished(self.name, command, timeout_s) from None
        if done.status in (126, 127):  # a shell's own: found no such program, or cannot start it
            raise EdgeqError(f"{self.name} cannot start {command[0]}: {_last(done.stderr) or 'no such program there'}")
        return done

    def get(self, remote: str, local: Path) -> None:
        """Fetch, compare size and hash, rename."""
        remote = inside(remote)
        self._prepared()
        self._doing, quoted = f"{remote} was fetched", shlex.quote(remote)
        facts = self._ask(
            f"[ -f {quoted} ] || exit 9; wc -c <{quoted}; sha256sum <{quoted}", 2 * self.step_s, allowed=(0, 9)
        )
        if facts.status == 9:
            raise EdgeqError(f"{self.name}: no file {remote} was written there")
        found = re.fullmatch(r"\s*(\d+)\s+([0-9a-f]{64})\s.*", facts.stdout, re.DOTALL)
        if found is None:
            raise EdgeqError(f"{self.name}: what it says of {remote} came truncated; run the same command again")
        partial = beside(local)
        try:
            self.fetch(f"{self.folder}/{remote}", partial)
            if partial.stat().st_size != int(found[1]):
                raise EdgeqError(
                    f"{self.name}: {remote} came truncated ({partial.stat().st_size} of {found[1]} bytes); "
                    "run the same command again"
                )
            if digest(partial) != found[2]:
                raise EdgeqError(
                    f"{self.name}: {remote} came damaged; check the cable, then run the same command again"
                )
            partial.replace(local)
        except Refused as words:
            raise EdgeqError(f"{self.name}: {remote} cannot be read there: {words}") from None
        except TimeoutError:
            raise self._silent() from None
        except OSError as error:
            raise EdgeqError(f"cannot write {local}: {error.strerror}") from None
        finally:
            partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder there and let go."""
        if self._there is not None:
            with contextlib.suppress(EdgeqError):
                self._step(f"rm -rf {self.folder}")
        self._let_go()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:  # what was sent stays for the run that follows
            self._let_go()

    def _let_go(self) -> None:
        self._there = None
        self._folders.clear()
        self.release()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _prepared(self) -> dict[str, str]:
        """Names there → SHA-256, after making the folder ours."""
        if self._there is None:
            if self._lock is None:
                self._lock = _hold(self.place, self.name)
            self._doing = "its folder was prepared"
            done = self._step(PREPARE.replace("FOLDER", self.folder), 6 * self.step_s)
            if done.status:
                raise EdgeqError(f"{self.name}: cannot use {self.folder} there: {_last(done.stderr)}")
            found = re.findall(r"^([0-9a-f]{64}) [ *]\./(.+)$", done.stdout, re.MULTILINE)
            self._there = {name: value for value, name in found}
        return self._there

    def _ask(self, script: str, timeout_s: float = 0.0, allowed: tuple[int, ...] = (0,)) -> Finished:
        """A step in the folder that must end with one of `allowed`."""
        done = self._step(f"cd {self.folder} || exit 1\n{script}", timeout_s)
        if done.status not in allowed:
            said = _last(done.stderr) or f"status {done.status}"
            raise EdgeqError(f"{self.name}: a step failed while {self._doing}: {said}")
        return done

    def _step(self, script: str, timeout_s: float = 0.0) -> Finished:
        """A short script; silence means the device is gone."""
        try:
            return self.execute(script, max(timeout_s, self.step_s))
        except TimeoutError:
            raise self._silent() from None

    def _silent(self) -> DeviceLost:
        return DeviceLost(f"{self.name} stopped answering while {self._doing}; {AGAIN}")

    def lost(self) -> DeviceLost:
        """The sentence for a connection that broke."""
        return DeviceLost(f"{self.name} went away while {self._doing}; {AGAIN}")

    def _refusal(self, local: Path, remote: str, words: str) -> EdgeqError:
        """Why a file was not taken; the half of it that was is removed."""
        free = ""
        with contextlib.suppress(EdgeqError):
            self._ask(f"rm -f {shlex.quote(remote + '.partial')}")
            table = self._ask("df -k . | tail -n 1").stdout.split()
            free = f", {int(table[-3]) / 1024:.0f} MB are free" if len(table) >= 5 and table[-3].isdigit() else ""
        if "space left" in words:
            size = local.stat().st_size / 2**20
            return EdgeqError(
                f"{self.name} is full: {remote} ({size:.1f} MB) did not fit{free}; free some space there and run the same "
                "command again"
            )
        return EdgeqError(f"{self.name} does not take {remote}: {words}")


def _hold(place: str, name: str) -> IO[str]:
    """A lock on `place`, for as long as the file is open: two runs at once would spoil each other's files and times.

    name: of the device, for the sentence.

    Raises:
        EdgeqError: another edgeq holds it.
    """
    path = home() / "locks" / (re.sub(r"[^A-Za-z0-9.@-]", "_", place) + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise EdgeqError(f"{name} is in use by another edgeq on this machine; wait for it to end") from None
    return file


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise EdgeqError(f"{name!r} is no name of an environment variable")
    return name


def _last(text: str) -> str:
    return text.strip().rpartition("\n")[2]
