"""Arm cores and a Hexagon DSP emulated by qemu: the same integers as the real ones, instruction counts, and no times."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgeq.device import Finished
from edgeq.devices.host import cores
from edgeq.devices.local import Local
from edgeq.home import home
from edgeq.spec import DeviceInfo, EdgeqError

PACKAGES = "tools/device_setup.sh installs it (Debian's qemu-user)"


@dataclass(frozen=True, slots=True)
class Core:
    """One emulated core: qemu's program and name for it, and what its manual says it has."""

    emulator: str
    cpu: str
    model: str
    abi: str
    features: tuple[str, ...]


# features as qemu's AT_HWCAP gives them, and as Arm's manuals of these cores do
CORES = {
    "cortex-a53": Core("qemu-aarch64", "cortex-a53", "Arm Cortex-A53", "aarch64-linux", ("asimd",)),
    "cortex-a76": Core("qemu-aarch64", "cortex-a76", "Arm Cortex-A76", "aarch64-linux", ("asimd", "asimddp")),
    "neoverse-n1": Core("qemu-aarch64", "neoverse-n1", "Arm Neoverse N1", "aarch64-linux", ("asimd", "asimddp")),
    "hexagon-v67": Core("qemu-hexagon", "v67", "Qualcomm Hexagon V67", "hexagon", ("hvx128",)),
}


def arm64_root() -> Path:
    """Libraries and Python of the emulated Arm cores; tools/arm64_root.py assembles it."""
    return home() / "arm64-root"


class Emulated(Local):
    """Programs of another processor, run by qemu in user mode."""

    def __init__(self, core: str) -> None:
        """Choose a core.

        Raises:
            EdgeqError: no such core, or qemu is not installed.
        """
        super().__init__()
        if core == "max":
            raise EdgeqError(
                "emulated:max: XNNPACK's int8 results are wrong on qemu's made-up core, so name a real one: "
                + ", ".join(f"emulated:{name}" for name, known in CORES.items() if known.emulator == "qemu-aarch64")
            )
        if core not in CORES:
            raise EdgeqError(f"emulated:{core}: no such core here; there are {', '.join(CORES)}")
        self.core = CORES[core]
        self._name = f"emulated:{core}"
        found = shutil.which(self.core.emulator)
        if found is None:
            raise EdgeqError(f"{self._name}: {self.core.emulator} is not installed; {PACKAGES}")
        self.emulator = found

    @property
    def name(self) -> str:
        """As on the command line."""
        return self._name

    def describe(self) -> DeviceInfo:
        """From the table above; its cores are threads of this host."""
        return DeviceInfo(
            name=self.name,
            model=f"{self.core.model} ({self.core.emulator} {_version(self.emulator)})",
            abi=self.core.abi,
            cores=1 if self.core.abi == "hexagon" else cores(),
            os="none" if self.core.abi == "hexagon" else "Linux",
            features=self.core.features,
            emulated=True,
        )

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 600.0,
        count: bool = False,
    ) -> Finished:
        """Run under the emulator; the program sees `environment`, its folder and nothing of this host's variables."""
        root = arm64_root() if self.core.abi == "aarch64-linux" else None
        started = [self.emulator, "-cpu", self.core.cpu]
        if root is not None and root.is_dir():
            started += ["-L", str(root)]
        guest = {"HOME": str(self.folder), "TMPDIR": str(self.folder), "LANG": "C.UTF-8", **(environment or {})}
        for variable in [v for v in guest if v.startswith("LD_")]:  # not for the emulator's own loader
            value = guest.pop(variable)
            if "," in value:
                raise EdgeqError(f"{self.name}: {variable} has a comma, which qemu takes for the end of it")
            started += ["-E", f"{variable}={value}"]
        counted = self.folder / ".instructions"
        counted.unlink(missing_ok=True)
        if count:
            started += ["-plugin", f"{_escaped(plugin(self.emulator))},out={_escaped(counted)}"]
        started += [self._program(command[0], root), *command[1:]]
        done = self.start(started, command, guest, timeout_s)
        missing = re.search(r"Could not open '(\S*ld-linux\S*)'", done.stderr)
        if missing and done.status:
            raise EdgeqError(
                f"{self.name}: {command[0]} needs shared libraries, and {arm64_root()} has no {missing[1]}; "
                "python tools/arm64_root.py assembles them"
            )
        if not count:
            return done
        number = counted.read_text().strip() if counted.is_file() else ""
        if done.status == 0 and not number.isdigit():
            raise EdgeqError(f"{self.name}: {command[0]} ended without an instruction count")
        return Finished(done.status, done.stdout, done.stderr, int(number) if number.isdigit() else None)

    def _program(self, name: str, root: Path | None) -> str:
        """A file that was put, or a program of the root's."""
        own = self.folder / name
        if not name.startswith("/") and own.is_file():
            return str(own)
        if root is not None:
            for folder in ("usr/bin", "bin", "usr/sbin"):
                candidate = root / folder / name.lstrip("/")
                if "/" not in name and candidate.is_file():
                    return str(candidate)
            if name.startswith("/") and (root / name.lstrip("/")).is_file():
                return str(root / name.lstrip("/"))
        where = f" or in {root}; python tools/arm64_root.py assembles that" if root is not None else ""
        raise EdgeqError(f"{self.name}: no program {name} was put there{where}")


def plugin(emulator: str) -> Path:
    """The instruction counter, built once for each qemu by this host's C compiler into home()/plugins.

    Raises:
        EdgeqError: there is no C compiler, or it fails.
    """
    source = resources.files("edgeq.runners").joinpath("count_instructions.c").read_bytes()
    api = 2 if int(_version(emulator).partition(".")[0]) >= 9 else 1
    digest = hashlib.sha256(source).hexdigest()[:12]
    built = home() / "plugins" / f"count_instructions-{digest}-api{api}.so"
    if built.is_file():
        return built
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise EdgeqError("counting instructions needs a C compiler on this host; tools/device_setup.sh installs gcc")
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as folder:
        code, library = Path(folder) / "count_instructions.c", Path(folder) / built.name
        code.write_bytes(source)
        done = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", f"-DPLUGIN_API={api}", str(code), "-o", str(library)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = next(iter(done.stderr.strip().splitlines()), f"status {done.returncode}")
            raise EdgeqError(f"{compiler} cannot build edgeq's instruction counter for qemu: {said}")
        library.replace(built)
    return built


@functools.cache
def _version(emulator: str) -> str:
    """qemu's version, as 7.2.22."""
    printed = subprocess.run([emulator, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version ([0-9]+[0-9.]*)", printed)
    if found is None:
        raise EdgeqError(f"{emulator} --version does not say which version it is")
    return found[1]


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")  # as qemu's option parser wants a comma inside a value
