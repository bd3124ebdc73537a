"""What every device can do: take a file, run a command, give a file, describe itself. It knows nothing of models.

It stands below the runtimes, so that one with servers of its own can bring its device along.
"""

from __future__ import annotations

import functools
import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from edgeq.spec import DeviceInfo, EdgeqError

if TYPE_CHECKING:
    from torch import Tensor

STEP_S = 20.0  # what a short command, or the next piece of a transfer, may take
AGAIN = "what was measured is kept: reconnect it and run the same command again"


class DeviceLost(EdgeqError):
    """The device went away in the middle of something; what was measured before is kept."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command ended: exit status, what it printed, and, on an emulated device asked to count, its instructions."""

    status: int
    stdout: str
    stderr: str
    instructions: int | None = None


class Device(Protocol):
    """A place with a folder of edgeq's own; remote names are relative to that folder, which is also where commands run."""

    @property
    def name(self) -> str:
        """As on the command line: `adb:SERIAL`, `emulated:cortex-a76`."""
        ...

    def describe(self) -> DeviceInfo:
        """What stands there.

        Raises:
            DeviceLost: it does not answer.
        """
        ...

    def put(self, local: Path, remote: str) -> None:
        """Copy a file there, executable where it is here; one whose content lies there already is not sent again.

        Folders in `remote` are made. A command must not write over a file that was put.

        Raises:
            DeviceLost: it went away. EdgeqError: it is full, or refuses.
        """
        ...

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        count: bool = False,
    ) -> Finished:
        """Run `command` (never through a shell string built from it unquoted) and wait for its end.

        The program is a file that was put, or else one of the device's own (`python3.11`).
        count: count instructions too, where the device can (emulated ones).

        Raises:
            DeviceLost: it went away. EdgeqError: there is no such program; not finished after `timeout_s` seconds.
        """
        ...

    def get(self, remote: str, local: Path) -> None:
        """Copy a file from there, written beside `local` and renamed.

        Raises:
            DeviceLost: it went away. EdgeqError: there is no such file, or it came truncated.
        """
        ...

    def close(self) -> None:
        """Remove edgeq's folder there and let go of the connection; silent when the device is gone."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Server(Device):
    """A device that runs the artefacts of one runtime through a session, and no programs."""

    runtime: ClassVar[str]

    @abstractmethod
    def execute(
        self,
        artifact: Path,
        batches: Sequence[Sequence[Tensor]],
        *,
        threads: int,
        warmup: int,
        runs: int,
        timeout_s: float,
    ) -> tuple[tuple[tuple[Tensor, ...], ...], dict[str, Any]]:
        """Outputs of each batch, and what a runner's result.json would say, without operators' times.

        Raises:
            DeviceLost: it went away. EdgeqError: it refuses.
        """


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> str:
    """SHA-256 of a file here, read once while size and time stay the same."""
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


def inside(remote: str) -> str:
    """`remote`, once it is known to stay inside the device's folder and out of edgeq's own files there.

    Raises:
        EdgeqError: it is absolute, climbs out, or starts with a dot.
    """
    parts = PurePosixPath(remote).parts
    if not parts or remote.startswith("/") or any(part.startswith(".") for part in parts) or "\n" in remote:
        raise EdgeqError(f"{remote!r}: a file on a device is named by a path inside edgeq's folder there, without dots")
    return str(PurePosixPath(remote))


def beside(local: Path) -> Path:
    """Where a file is written until it is whole."""
    return local.with_name(f"{local.name}.partial")
