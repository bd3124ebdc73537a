"""The optimizers' kernel outside of Python: every path leaves the same bytes, on this processor, under sanitizers, on Arm.

    tools/check_native.py                     # g++ as it is
    tools/check_native.py --sanitize          # address and undefined behaviour, then threads
    tools/check_native.py --compiler aarch64-linux-gnu-g++ --run qemu-aarch64 --run -L --run ROOT

Ends with 1 where two paths or two numbers of threads differ, or a sanitizer speaks up. `--expect FILE` also compares with
lines that another run printed, of another processor.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeq.optim.maps import dynamic_map
from edgeq.optim.native import _map

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("-std=c++17", "-fopenmp-simd", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread")
SANITIZERS = ("address,undefined", "thread")


def lines(folder: Path, compiler: str, flags: Sequence[str], runner: Sequence[str], threads: int) -> list[str]:
    """Build the check with `flags`, run it by `runner`, and give its lines `path kind block hash`."""
    folder.mkdir(parents=True, exist_ok=True)
    maps, program = folder / "maps", folder / "check"
    maps.write_bytes(b"".join(bytes(_map(dynamic_map(signed))) for signed in (True, False)))
    built = [compiler, *FLAGS, *flags, str(ROOT / "native" / "check.cpp"), "-o", str(program)]
    subprocess.run(built, check=True)
    options = {"UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1", "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [*runner, str(program), str(maps), str(threads)],
        env={**os.environ, **options},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()


def disagreements(found: Sequence[str]) -> list[str]:
    """Every `kind block` that two lines have another hash for."""
    hashes: dict[str, set[str]] = {}
    for line in found:
        _, kind, size, value = line.split()
        hashes.setdefault(f"{kind} {size}", set()).add(value)
    return [key for key, values in hashes.items() if len(values) > 1]


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="g++", help="for x86-64 or another processor")
    parser.add_argument(
        "--run", action="append", default=[], metavar="WORD", help="word of the command that runs a program"
    )
    parser.add_argument("--sanitize", action="store_true", help="with address, undefined and thread sanitizers")
    parser.add_argument("--expect", type=Path, help="lines of another run to agree with")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "native")
    options = parser.parse_args()
    told = options.expect.read_text().splitlines() if options.expect else []
    ways = [(f"-fsanitize={s}", "-g", "-O1") for s in SANITIZERS] if options.sanitize else [("-O3",)]
    found: list[str] = []
    for flags in ways:
        for threads in (1, 3):
            try:
                made = lines(options.folder, options.compiler, flags, options.run, threads)
            except subprocess.CalledProcessError as error:
                print(
                    f"{' '.join(flags)}, {threads} threads: ended with {error.returncode}\n{error.stderr or ''}",
                    file=sys.stderr,
                )
                return 1
            found += made
    if wrong := disagreements([*found, *told]):
        print(f"other bytes in another path, by other threads or elsewhere: {', '.join(wrong)}", file=sys.stderr)
        return 1
    print("\n".join(found[: len(found) // (2 * len(ways))]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
