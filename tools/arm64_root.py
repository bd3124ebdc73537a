#!/usr/bin/env python3
"""Assembles what emulated Arm cores run in: Debian 12's arm64 libraries and Python, with LiteRT and numpy.

Writes home()/arm64-root (about 150 MB). Downloads are kept in home()/downloads, so an interrupted run goes on where it
was; EDGEQ_DEBIAN_MIRROR names another mirror than deb.debian.org. Needs apt-get, dpkg-deb and qemu-aarch64
(tools/device_setup.sh); no root, and leaves the system's own package lists and architectures alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from edgeq.home import home
from edgeq.runners import wheels
from edgeq.spec import EdgeqError

SUITE = "bookworm"
MIRROR = os.environ.get("EDGEQ_DEBIAN_MIRROR", "http://deb.debian.org/debian")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN = (
    "libc6", "libgcc-s1", "libstdc++6", "libgomp1", "zlib1g", "libffi8", "libexpat1", "libssl3", "libbz2-1.0", "liblzma5",
    "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal", "python3.11",
)  # fmt: skip
WHEELS = (
    "ai-edge-litert",
    "backports.strenum",
    "flatbuffers",
    "ml_dtypes",
    "numpy",
    "tqdm",
    "typing_extensions",
)
PACKAGES = "usr/lib/python3/dist-packages"
STAMP = "edgeq-root.json"
CHECK = """
import platform, numpy, ai_edge_litert.interpreter
assert platform.machine() == "aarch64"
assert int((numpy.arange(100, dtype=numpy.int8).astype(numpy.int32) ** 2).sum()) == 328350
print("python", platform.python_version(), "numpy", numpy.__version__)
"""


def main() -> None:
    """Assemble the root, or say that it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="assemble anew")
    try:
        print(assemble(force=parser.parse_args().force))
    except EdgeqError as error:
        sys.exit(f"arm64_root: {error}")


def assemble(*, force: bool = False) -> Path:
    """The finished root; nothing is done where it is complete and made by this recipe.

    Raises:
        EdgeqError: a tool is missing, a download fails, or Python does not run in the result.
    """
    root = home() / "arm64-root"
    wanted = {"recipe": recipe()}
    stamp = root / STAMP
    if not force and stamp.is_file() and json.loads(stamp.read_text()).items() >= wanted.items():
        return root
    for tool in ("apt-get", "dpkg-deb", "qemu-aarch64"):
        if shutil.which(tool) is None:
            raise EdgeqError(f"{tool} is missing: on Debian run tools/device_setup.sh")
    made = root.with_name("arm64-root.partial")
    shutil.rmtree(made, ignore_errors=True)
    (made / PACKAGES).mkdir(parents=True)
    packages = debian_packages()
    for package in packages:
        say(f"unpack {package.name}")
        run(["dpkg-deb", "-x", str(package), str(made)], f"unpacking {package}")
    for name, wheel in wheels.fetch(WHEELS).items():
        say(f"unpack {name}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(made / PACKAGES)
    (made / "usr/bin/python3").unlink(missing_ok=True)
    (made / "usr/bin/python3").symlink_to("python3.11")
    say("run Python in it")
    versions = run(
        ["qemu-aarch64", "-cpu", "cortex-a76", "-L", str(made), str(made / "usr/bin/python3.11"), "-c", CHECK],
        "running Python in the new root",
    ).strip()
    found = {**wanted, "python": versions, "debian": [p.name for p in packages]}
    (made / STAMP).write_text(json.dumps(found, indent=1) + "\n")
    if root.exists():
        old = root.with_name("arm64-root.old")
        shutil.rmtree(old, ignore_errors=True)
        root.rename(old)
        made.rename(root)
        shutil.rmtree(old)
    else:
        made.rename(root)
    return root


def recipe() -> str:
    """Hash of what goes in."""
    parts = (SUITE, DEBIAN, [(name, wheels.VERSIONS[name]) for name in WHEELS])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def debian_packages() -> list[Path]:
    """The arm64 packages of DEBIAN, downloaded with package lists of their own."""
    apt = home() / "downloads" / "apt"
    kept = home() / "downloads" / "deb-arm64"
    for folder in (apt / "lists/partial", apt / "cache/archives/partial", apt / "state", kept):
        folder.mkdir(parents=True, exist_ok=True)
    signed = f"[arch=arm64 signed-by={KEYRING}]" if KEYRING.is_file() else "[arch=arm64]"
    (apt / "sources.list").write_text(f"deb {signed} {MIRROR} {SUITE} main\n")
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Retries": "3",
        "Acquire::Languages": "none",
        "Dir::State": str(apt / "state"),
        "Dir::State::Lists": str(apt / "lists"),
        "Dir::State::status": str(apt / "status"),
        "Dir::Cache": str(apt / "cache"),
        "Dir::Etc::SourceList": str(apt / "sources.list"),
        "Dir::Etc::SourceParts": "/dev/null",
    }
    command = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
    say(f"read Debian's list of arm64 packages ({MIRROR} {SUITE})")
    run([*command, "update"], "apt-get update")
    names = run([*command, "--print-uris", "download", *DEBIAN], "apt-get download").splitlines()
    files = [line.split()[1] for line in names if line.startswith("'")]
    missing = [file.split("_")[0] for file in files if not (kept / file).is_file()]
    if missing:
        say(f"download {' '.join(missing)}")
        run([*command, "download", *missing], "apt-get download", cwd=kept)
    return [kept / file for file in files]


def run(command: list[str], what: str, cwd: Path | None = None) -> str:
    """Standard output of `command`."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeqError(f"{what} failed: {(done.stderr.strip() or f'exit status {done.returncode}').splitlines()[-1]}")
    return done.stdout


def say(text: str) -> None:
    """Progress goes to stderr; the result alone to stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
