"""What every device can do: take a file, run a command, give a file, describe itself. It knows nothing of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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

        count: count instructions too, where the device can (emulated ones).

        Raises:
            DeviceLost: it went away. EdgeqError: not finished after `timeout_s` seconds.
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

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
