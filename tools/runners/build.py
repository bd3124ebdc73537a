"""Builds the C++ runners of ExecuTorch and TVM for a device: `python -m edgeq.runners.build aarch64-linux`.

They go into home()/runners/<abi>/ with the shared libraries they need, which come out of the runtimes' wheels for that
machine. `aarch64-linux` needs Debian's g++-aarch64-linux-gnu, `x86_64-linux` g++. `aarch64-android` needs the NDK
(ANDROID_NDK_HOME) and the runtimes' libraries built for Android (EDGEQ_ANDROID_LIBRARIES), because no wheel has those.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeq.home import home
from edgeq.runners import wheels
from edgeq.spec import EdgeqError

SOURCES = Path(__file__).parent
STAMP = "built.json"
AARCH64, PT_LOAD, PT_DYNAMIC, DT_NEEDED, DT_STRTAB = 183, 1, 2, 1, 5  # elf.h


@dataclass(frozen=True, slots=True)
class Runner:
    """One program: its source, the wheels it builds against, and what it links.

    packages: wheel → (folder of its headers, folder of its libraries), inside the wheel. libraries: linked and copied
    beside the program, which finds them there. always: those among them that no symbol refers to, because they only
    register kernels.
    """

    name: str
    source: str
    packages: dict[str, tuple[str, str]]
    libraries: tuple[str, ...]
    always: tuple[str, ...]
    include: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


RUNNERS = (
    Runner(
        "executorch_runner",
        "executorch.cpp",
        {"executorch": ("executorch/include", "executorch/lib")},
        ("executorch", "executorch_etdump"),
        (
            "executorch_kernels_optimized",
            "executorch_kernels_quantized",
            "executorch_backend_xnnpack",
            "executorch_threadpool",
        ),
        ("executorch/include/executorch/runtime/core/portable_type/c10",),
        ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-Wno-deprecated-declarations"),
    ),
    Runner(
        "tvm_runner",
        "tvm.cpp",
        {"apache-tvm-ffi": ("tvm_ffi/include", "tvm_ffi/lib"), "apache-tvm": ("", "tvm/lib")},
        ("tvm_ffi",),
        ("tvm_runtime",),
    ),
)
COMPILERS = {"aarch64-linux": "aarch64-linux-gnu-g++", "x86_64-linux": "g++"}
ABIS = (*COMPILERS, "aarch64-android")


def main() -> None:
    """Build for the ABIs named, aarch64-linux where none is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("abi", nargs="*", help=f"{', '.join(ABIS)}; default aarch64-linux")
    parser.add_argument("--force", action="store_true", help="build anew")
    options = parser.parse_args()
    try:
        for abi in options.abi or ["aarch64-linux"]:
            print(build(abi, force=options.force))
    except EdgeqError as error:
        sys.exit(f"edgeq.runners.build: {error}")


def build(abi: str, *, force: bool = False) -> Path:
    """home()/runners/<abi>, built where it was not built from these sources yet.

    Raises:
        EdgeqError: no compiler, a wheel cannot be had, or compiling fails.
    """
    folder = home() / "runners" / abi
    wanted = {"sources": digest(), "versions": {n: wheels.VERSIONS[n] for r in RUNNERS for n in r.packages}}
    stamp = folder / STAMP
    if not force and stamp.is_file() and json.loads(stamp.read_text()) == wanted:
        return folder
    compiler = _compiler(abi)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{abi}.", dir=folder.parent) as scratch:
        made, unpacked = Path(scratch) / "made", Path(scratch) / "unpacked"
        made.mkdir()
        for runner in RUNNERS:
            print(f"build {runner.name} for {abi}", file=sys.stderr, flush=True)
            _build(runner, abi, compiler, unpacked, made)
        (made / STAMP).write_text(json.dumps(wanted, indent=1) + "\n")
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        made.rename(folder)
    return folder


def installed(name: str, abi: str) -> dict[str, Path]:
    """Files that runner `name` needs on a device: it first, then its libraries, to lie side by side.

    Raises:
        EdgeqError: it was not built for `abi`, or from other sources than these: with the command that does it.
    """
    runner = next(r for r in RUNNERS if r.name == name)
    if abi not in ABIS:
        raise EdgeqError(f"there is no {name} for {abi}: it is built for {', '.join(ABIS)}")
    folder = home() / "runners" / abi
    stamp = folder / STAMP
    if not stamp.is_file() or json.loads(stamp.read_text()).get("sources") != digest():
        why = "is not built" if not stamp.is_file() else "was built from other sources"
        raise EdgeqError(f"{name} for {abi} {why}: run python -m edgeq.runners.build {abi}")
    names = (name, *(f"lib{library}.so" for library in (*runner.libraries, *runner.always)))
    return {n: folder / n for n in names}


def digest() -> str:
    """Hash of the sources and of this recipe."""
    files = [SOURCES / "runner.h", *(SOURCES / r.source for r in RUNNERS), Path(__file__)]
    return hashlib.sha256(b"\0".join(f.read_bytes() for f in files)).hexdigest()[:16]


def _compiler(abi: str) -> list[str]:
    if abi == "aarch64-android":
        return [_ndk()]
    if abi not in COMPILERS:
        raise EdgeqError(f"there are no runners for {abi}: choose from {', '.join(ABIS)}")
    name = COMPILERS[abi]
    if shutil.which(name) is None:
        raise EdgeqError(f"{name} is missing, which builds for {abi}: on Debian run tools/device_setup.sh")
    return [name]


def _ndk() -> str:
    """The NDK's compiler for Android 8 and later.

    Raises:
        EdgeqError: no NDK.
    """
    root = os.environ.get("ANDROID_NDK_HOME")
    if not root:
        raise EdgeqError("building for aarch64-android needs the Android NDK: set ANDROID_NDK_HOME to its folder")
    found = sorted(Path(root).glob("toolchains/llvm/prebuilt/*/bin/aarch64-linux-android26-clang++"))
    if not found:
        raise EdgeqError(f"ANDROID_NDK_HOME is {root}, but there is no aarch64-linux-android26-clang++ in it")
    return str(found[0])


def _build(runner: Runner, abi: str, compiler: Sequence[str], unpacked: Path, made: Path) -> None:
    """Compile one runner and copy its libraries."""
    machine, system = abi.split("-")
    headers, folders = [], []
    android = _android_libraries(runner) if system == "android" else None
    for package, (include, library) in runner.packages.items():
        wheel = wheels.fetch([package], machine)[package]
        _unpack(wheel, unpacked, [folder for folder in (include, library) if folder])
        headers += [unpacked / include] if include else []
        folders.append(unpacked / library)
    headers += [unpacked / extra for extra in runner.include]
    if android is not None:
        folders = [android]
    libraries = {name: _library(name, folders, runner, abi) for name in (*runner.libraries, *runner.always)}
    release = ", ".join(f"{_plain(p)} {wheels.VERSIONS[p]}" for p in list(runner.packages)[-1:])
    command = [
        *compiler,
        *("-std=c++17", "-O2", "-Wall", "-Wextra", *runner.flags),
        f'-DEDGEQ_RUNTIME="{release}"',
        *(part for header in headers for part in ("-isystem", str(header))),
        str(SOURCES / runner.source),
        *("-o", str(made / runner.name)),
        *(f"-L{folder}" for folder in folders),
        *(f"-l{name}" for name in runner.libraries),
        "-Wl,--no-as-needed",
        *(f"-l{name}" for name in runner.always),
        "-Wl,-rpath,$ORIGIN",
        "-Wl,--allow-shlib-undefined",
        *(["-static-libstdc++"] if android is not None else []),  # the phone has no libc++_shared.so
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["?"]
        raise EdgeqError(f"{compiler[0]} cannot build {runner.name} for {abi}: {errors[0]}")
    for path in libraries.values():
        shutil.copy2(path, made / path.name)


def _unpack(wheel: Path, where: Path, folders: Sequence[str]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(tuple(f"{f}/" for f in folders))]
        big = [n for n in names if n.endswith(".so") and "compiler" in n]  # 237 MB that no device needs
        archive.extractall(where, [n for n in names if n not in big])


def _library(name: str, folders: Sequence[Path], runner: Runner, abi: str) -> Path:
    for folder in folders:
        if (folder / f"lib{name}.so").is_file():
            return folder / f"lib{name}.so"
    raise EdgeqError(f"{runner.name} for {abi} needs lib{name}.so, which is not in {', '.join(map(str, folders))}")


def _android_libraries(runner: Runner) -> Path:
    """The folder with the runner's libraries for Android.

    Raises:
        EdgeqError: it is not named, or a library is missing or another system's.
    """
    named = os.environ.get("EDGEQ_ANDROID_LIBRARIES")
    if not named:
        raise EdgeqError(
            "no wheel carries the runtimes for Android: build ExecuTorch and TVM with the NDK and set "
            "EDGEQ_ANDROID_LIBRARIES to the folder of their shared libraries"
        )
    for name in (*runner.libraries, *runner.always):
        path = _library(name, [Path(named)], runner, "aarch64-android")
        if why := _not_for_android(path.read_bytes()):
            raise EdgeqError(f"{path} {why}: build it with the NDK for arm64-v8a")
    return Path(named)


def _not_for_android(library: bytes) -> str:
    """Why a library does not load on a 64-bit Arm Android, in words; empty where nothing speaks against it."""
    if library[:6] != b"\x7fELF\x02\x01":
        return "is no 64-bit ELF library"
    if int.from_bytes(library[18:20], "little") != AARCH64:
        return "is for another processor than aarch64"
    return "wants libc.so.6, which is Linux's and not Android's" if "libc.so.6" in _needed(library) else ""


def _needed(library: bytes) -> list[str]:
    """Names of the libraries that a little-endian 64-bit ELF file is linked with (DT_NEEDED); see elf(5)."""
    header = struct.Struct("<IIQQQQQQ")
    start, (size, count) = struct.unpack_from("<Q", library, 32)[0], struct.unpack_from("<HH", library, 54)
    parts = [header.unpack_from(library, start + i * size) for i in range(count)]
    found, strings = [], 0
    for kind, _, offset, _, _, length, _, _ in parts:
        if kind == PT_DYNAMIC:
            entries = list(struct.iter_unpack("<QQ", library[offset : offset + length // 16 * 16]))
            found += [value for tag, value in entries if tag == DT_NEEDED]
            strings = next((value for tag, value in entries if tag == DT_STRTAB), 0)
    for kind, _, offset, address, _, length, _, _ in parts:
        if kind == PT_LOAD and address <= strings < address + length:
            strings += offset - address
            break
    return [library[strings + at : library.index(0, strings + at)].decode(errors="replace") for at in found]


def _plain(package: str) -> str:
    return package.removeprefix("apache-")


if __name__ == "__main__":
    main()
