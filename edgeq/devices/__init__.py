"""Where an artefact runs: devices know files and commands, not models."""

from __future__ import annotations

from edgeq.devices.device import Device, DeviceLost, Finished
from edgeq.spec import EdgeqError

__all__ = ["Device", "DeviceLost", "Finished", "open_device"]

KINDS = (
    "host",
    "emulated:cortex-a53",
    "emulated:cortex-a76",
    "emulated:neoverse-n1",
    "emulated:hexagon-v67",
    "adb:SERIAL",
    "ssh:USER@HOST[:PORT]",
    "apple:",
    "tvm-rpc:HOST:PORT[:KEY]",
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
    if kind == "emulated":
        from edgeq.devices.emulated import Emulated

        return Emulated(rest)
    raise EdgeqError(f"unknown device {name!r}: there are {', '.join(KINDS)}; edgeq doctor lists what is reachable")
