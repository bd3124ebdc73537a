"""What every device can do: take a file, run a command, give a file, describe itself. It knows nothing of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Protocol, Self

from edgeq.spec import DeviceInfo, EdgeqError


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
