"""Devices in their own words, and how an artefact is run there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device in its own words.

    abi: which binaries it runs, architecture and system: `x86_64-linux`, `aarch64-linux`, `aarch64-android`, `hexagon`,
        `arm64-apple`. features: vector features that matter for int8, by their names in /proc/cpuinfo.
    governor, temperature_c: of the first core and the hottest zone, where readable.
    emulated: it computes what the real core would, and its times mean nothing.
    """

    name: str
    model: str
    abi: str
    cores: int
    os: str
    features: tuple[str, ...] = ()
    governor: str | None = None
    temperature_c: float | None = None
    emulated: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """How one artefact is run on a device with some abi: what a backend knows and a device does not.

    files: name on the device → file here; the artefact, the runner and its libraries. command: program and fixed
    arguments, names relative to the device's folder; what a run wants (inputs, threads, runs) is added to it.
    environment: variables of the command.
    """

    files: dict[str, Path]
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
