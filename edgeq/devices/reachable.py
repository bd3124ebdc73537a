"""Which devices can be reached from here, what each can do, and how to get the others; quick, and never stuck."""

from __future__ import annotations

import platform
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass

from edgeq.backends import RUNTIMES, VARIANTS, installed
from edgeq.backends.runtime import Runtime, Served
from edgeq.devices.emulated import CORES, PACKAGES, Emulated, arm64_root
from edgeq.devices.host import Host
from edgeq.runners import build
from edgeq.spec import DeviceInfo, EdgeqError

PATIENCE_S = 2.0  # what a phone may take to describe itself
EVERYTHING = "verify, profile"
EMULATION = "verify; instruction counts, no times"


@dataclass(frozen=True, slots=True)
class Found:
    """A device or a kind of device. `info` is None where it cannot be reached; then `how` says how to get it.

    can: what it is good for. how: what is still missing, as an instruction; empty where nothing is.
    """

    name: str
    info: DeviceInfo | None
    can: str
    how: str = ""


def found(patience_s: float = PATIENCE_S) -> list[Found]:
    """Every kind of device, the reachable ones described; takes `patience_s` seconds and a little at most."""
    questions: list[tuple[str, str, Callable[[], list[Found]]]] = [
        ("host", EVERYTHING, lambda: [Found("host", Host().describe(), EVERYTHING)]),
        *((f"emulated:{core}", EMULATION, lambda core=core: [_emulated(core)]) for core in CORES),
        ("adb:SERIAL", EVERYTHING, lambda: _phones(patience_s)),
        ("ssh:USER@HOST", EVERYTHING, _ssh),
        *(("apple:", _only(runtime), lambda r=runtime: [_apple(r)]) for runtime in RUNTIMES.values() if runtime.apple),
        *(
            (_address(server), _only(runtime), lambda r=runtime, s=server: [_served(r, s)])
            for runtime in RUNTIMES.values()
            if (server := runtime.server)
        ),
    ]
    answers: dict[str, list[Found]] = {}

    def ask(name: str, can: str, question: Callable[[], list[Found]]) -> None:
        try:
            answers[name] = question()
        except EdgeqError as error:
            answers[name] = [Found(name, None, can, str(error))]

    threads = [threading.Thread(target=ask, args=question, daemon=True) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience_s + 1.0)
    nothing = f"no answer within {patience_s + 1.0:g} s"
    return [row for name, can, _ in questions for row in answers.get(name, [Found(name, None, can, nothing)])]


def _emulated(core: str) -> Found:
    name = f"emulated:{core}"
    if shutil.which(CORES[core].emulator) is None:
        return Found(name, None, EMULATION, PACKAGES)
    missing = _hexagon() if CORES[core].abi == "hexagon" else _arm64()
    return Found(name, Emulated(core).describe(), EMULATION, "; ".join(missing))


def _hexagon() -> list[str]:
    """What else exporting for Hexagon needs here, as instructions."""
    tools = [tool for tool in ("clang", "ld.lld") if not (shutil.which(f"{tool}-16") or shutil.which(tool))]
    fitting = " or ".join(name for name, variant in VARIANTS.items() if variant.machine == "hexagon")
    return [f"--to {fitting} needs {' and '.join(tools)}: apt-get install clang-16 lld-16"] if tools else []


def _arm64() -> list[str]:
    """What else running on emulated Arm cores needs here, as instructions."""
    missing = []
    if not arm64_root().is_dir():
        missing.append("the runtimes' libraries are missing: python tools/arm64_root.py")
    tools = [tool for tool in ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++") if shutil.which(tool) is None]
    if tools:
        missing.append(f"{' and '.join(tools)} missing: tools/device_setup.sh installs them")
    try:
        for runner in build.RUNNERS:
            build.installed(runner.name, "aarch64-linux")
    except EdgeqError as error:
        missing.append(str(error))
    return missing


def _phones(patience_s: float) -> list[Found]:
    from edgeq.devices.adb import STATES, Adb, client, phones, running

    was_running = running()
    server = client(patience_s)
    connected = phones(server)
    if not connected:
        if not was_running:
            server.server_kill()  # it was started for this question only
        return [
            Found("adb:SERIAL", None, EVERYTHING, "plug a phone in, with USB debugging on in its developer options")
        ]
    rows: list[Found | None] = [None] * len(connected)

    def ask(index: int, serial: str, state: str) -> None:
        name = f"adb:{serial}"
        try:
            if state != "device":
                raise EdgeqError(STATES.get(state, f"its state is {state}"))
            rows[index] = Found(name, Adb(serial, step_s=patience_s).describe(), EVERYTHING)
        except EdgeqError as error:
            rows[index] = Found(name, None, EVERYTHING, str(error))

    threads = [
        threading.Thread(target=ask, args=(index, *phone), daemon=True) for index, phone in enumerate(connected.items())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience_s)
    return [
        row or Found(f"adb:{serial}", None, EVERYTHING, f"no answer within {patience_s:g} s")
        for serial, row in zip(connected, rows, strict=True)
    ]


def _ssh() -> list[Found]:
    how = "any Linux board with an ssh server that takes your key"
    if shutil.which("ssh") is None:
        how = "tools/device_setup.sh installs ssh (Debian's openssh-client)"
    return [Found("ssh:USER@HOST", None, EVERYTHING, how)]


def _only(runtime: Runtime) -> str:
    """What a device is good for that runs one runtime's artefacts alone."""
    return f"{runtime.title}: {EVERYTHING}"


def _apple(runtime: Runtime) -> Found:
    from edgeq.devices.apple import Apple

    if platform.system() != "Darwin":
        return Found("apple:", None, _only(runtime), "run edgeq on a Mac")
    return Found("apple:", Apple().describe(), _only(runtime))


def _address(server: Served) -> str:
    """How such a server is named, without what may be left out."""
    return f"{server.kind}:{server.where.partition('[')[0]}"


def _served(runtime: Runtime, server: Served) -> Found:
    how = server.start if installed(runtime.name) else f"pip install 'edgeq[{runtime.name}]'; {server.start}"
    return Found(_address(server), None, _only(runtime), how)
