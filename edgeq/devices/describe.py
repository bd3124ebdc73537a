"""Reading what a Linux or Android machine says of itself: one shell script and the facts in its output."""

from __future__ import annotations

from dataclasses import dataclass

from edgeq.spec import DeviceInfo

# integer dot-product instructions that decide whether int8 beats float, by their names in /proc/cpuinfo
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")

# one section a question; what a machine cannot answer stays empty
SCRIPT = """
unset OMP_NUM_THREADS OMP_THREAD_LIMIT
echo @machine; uname -m
echo @system; uname -s; uname -r
echo @cores; nproc 2>/dev/null || grep -c '^processor' /proc/cpuinfo
echo @android; getprop ro.build.version.release 2>/dev/null
echo @maker; getprop ro.product.manufacturer 2>/dev/null
echo @product; getprop ro.product.model 2>/dev/null
echo @soc; getprop ro.soc.model 2>/dev/null
echo @board; tr -d '\\000' 2>/dev/null </proc/device-tree/model; echo
echo @governor; cat /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor 2>/dev/null
echo @zones; cat /sys/class/thermal/thermal_zone*/temp 2>/dev/null
echo @cpuinfo; cat /proc/cpuinfo 2>/dev/null
echo @end
"""


@dataclass(frozen=True, slots=True)
class Cpu:
    """The first processor of a /proc/cpuinfo: its name where it has one, and the features that matter for int8."""

    model: str
    features: tuple[str, ...]


def cpu(cpuinfo: str) -> Cpu:
    """Read the text of /proc/cpuinfo."""
    info: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return Cpu(info.get("model name") or info.get("Hardware") or "", tuple(f for f in FEATURES if f in flags))


def read(name: str, printed: str) -> DeviceInfo | None:
    """What SCRIPT printed as a description; None where it did not run to its end."""
    sections: dict[str, list[str]] = {}
    lines = sections.setdefault("", [])
    for line in printed.splitlines():
        if line.startswith("@"):
            lines = sections.setdefault(line[1:].strip(), [])
        elif line.strip():
            lines.append(line.strip())
    if "end" not in sections or not sections.get("machine"):
        return None

    def first(section: str) -> str:
        return next(iter(sections.get(section, [])), "")

    processor = cpu("\n".join(sections["cpuinfo"]))
    android = first("android")
    phone = " ".join(word for word in (first("maker"), first("product")) if word)
    soc = first("soc")
    model = (f"{phone} ({soc})" if soc else phone) or first("board") or processor.model or first("machine")
    cores = first("cores")
    return DeviceInfo(
        name=name,
        model=model,
        abi=f"{first('machine')}-{'android' if android else 'linux'}",
        cores=int(cores) if cores.isdigit() else 1,
        os=f"Android {android}" if android else " ".join(sections["system"]),
        features=processor.features,
        governor=first("governor") or None,
        temperature_c=hottest(sections["zones"]),
    )


def hottest(zones: list[str]) -> float | None:
    """Hottest thermal zone in °C; zones tell thousandths of a degree, some whole degrees, some nothing sensible."""
    degrees = []
    for zone in zones:
        try:
            value = float(zone)
        except ValueError:
            continue
        value = value / 1000 if abs(value) >= 1000 else value
        if 0 < value < 150:
            degrees.append(value)
    return max(degrees, default=None)
