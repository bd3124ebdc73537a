"""Where an artefact runs: devices know files and commands, not models."""

from __future__ import annotations

import importlib

from edgeq.backends import RUNTIMES
from edgeq.device import Device, DeviceLost, Finished
from edgeq.devices.reachable import Found, found
from edgeq.spec import EdgeqError

__all__ = ["Device", "DeviceLost", "Finished", "Found", "found", "open_device"]

KINDS = (
    "host",
    "emulated:cortex-a53",
    "emulated:cortex-a76",
    "emulated:neoverse-n1",
    "emulated:hexagon-v67",
    "adb:SERIAL",
    "ssh:USER@HOST[:PORT]",
    "apple:",
    *(f"{runtime.server.kind}:{runtime.server.where}" for runtime in RUNTIMES.values() if runtime.server),
)


def open_device(name: str) -> Device:
    """The device of that name, to be used as a context manager.

    Raises:
        EdgeqError: no such kind of device, or it cannot be reached: why, and what to do.
    """
    kind, _, rest = name.partition(":")
    if name == "host":
        from edgeq.devices.host import Host

        return Host()
    if kind == "adb":
        from edgeq.devices.adb import Adb

        return Adb(rest)
    if kind == "ssh":
        from edgeq.devices.ssh import Ssh

        return Ssh(rest)
    if name in ("apple", "apple:"):
        from edgeq.devices.apple import Apple

        return Apple()
    for runtime in RUNTIMES.values():
        if runtime.server and kind == runtime.server.kind:
            opened: Device = importlib.import_module(f"edgeq.backends.{runtime.name}.server").connect(rest)
            return opened
    if kind == "emulated":
        from edgeq.devices.emulated import Emulated

        return Emulated(rest)
    raise EdgeqError(f"unknown device {name!r}: there are {', '.join(KINDS)}; edgeq doctor lists what is reachable")
