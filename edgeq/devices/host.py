"""This machine, as a device."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

# integer dot-product instructions that decide whether int8 beats float, by their names in /proc/cpuinfo
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


def describe() -> dict[str, Any]:
    """Processor model, usable cores, operating system and the vector features that matter for int8."""
    info: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            info.setdefault(key.strip(), value.strip())
    flags = set((info.get("flags") or info.get("Features") or "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": info.get("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "os": f"{platform.system()} {platform.release()}",
        "features": [f for f in FEATURES if f in flags],
    }
