"""This machine, as a device."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from edgeq.devices.describe import cpu, hottest
from edgeq.devices.local import Local
from edgeq.spec import DeviceInfo


def describe() -> dict[str, Any]:
    """Processor model, usable cores, operating system and the vector features that matter for int8."""
    cpuinfo = Path("/proc/cpuinfo")
    processor = cpu(cpuinfo.read_text() if cpuinfo.is_file() else "")
    return {
        "model": processor.model or platform.processor() or platform.machine(),
        "cores": cores(),
        "os": f"{platform.system()} {platform.release()}",
        "features": list(processor.features),
    }


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Host(Local):
    """Programs of this machine, run on it."""

    name = "host"

    def describe(self) -> DeviceInfo:
        """Read from /proc and /sys."""
        found = describe()
        machine, system = platform.machine(), platform.system()
        return DeviceInfo(
            name=self.name,
            model=found["model"],
            abi="arm64-apple" if (system, machine) == ("Darwin", "arm64") else f"{machine}-{system.lower()}",
            cores=found["cores"],
            os=found["os"],
            features=tuple(found["features"]),
            governor=_read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
            temperature_c=hottest(
                [_read(zone) or "" for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp")]
            ),
        )


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip() or None
    except OSError:
        return None
