"""What the kernels of a TVM artefact are made of: vector multiplies in the loops of their machine code.

python tools/disassemble.py out/tvm-arm64/model.so [--listing conv2d_3]

For each kernel: the loop that multiplies most vectors (int8 or int16 into int32 sums), how many instructions it has besides
those of loops within it, and their share. A sum that the compiler unrolled whole is part of the loop around it, or of none.
Needs llvm-objdump (Debian's llvm-16).
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# vector instructions that multiply integers into wider ones, as llvm-objdump writes them: x86, Arm, Hexagon
MULTIPLIES = re.compile(
    r"\b(vpdpbusds?|v?pmaddwd|v?pmulld|v?pmuldq"
    r"|[su]dot|[su]mlal2?|[su]mull2?"
    r"|vrmpy|vmpy)\b"
)
BRANCHES = re.compile(r"\b(j[a-z]+|b|b\.[a-z]+|cbn?z|tbn?z|jump(?::[nt]+)?)\b.*?\b0x([0-9a-f]+)\b(?=[^#]*$)")
HEXAGON = (164).to_bytes(2, "little")  # e_machine of an ELF file
HARDWARE_LOOP = re.compile(r"\b(?:sp[123])?loop([01])\(0x([0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop without the loops in it: its instructions, and how many of each vector multiply are among them.

    closed: whether it is one, and not what a kernel does outside of all its loops.
    """

    instructions: int
    multiplies: Counter[str]
    closed: bool = True

    @property
    def share(self) -> float:
        """Of its instructions, those that multiply vectors."""
        return sum(self.multiplies.values()) / max(self.instructions, 1)


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel by its name in the artefact, with its loops, the code around them, and its listing."""

    name: str
    loops: tuple[Loop, ...]
    listing: tuple[str, ...]

    @property
    def busiest(self) -> Loop:
        """The loop with the most vector multiplies."""
        return max(self.loops, key=lambda loop: sum(loop.multiplies.values()))


def kernels(path: Path) -> list[Kernel]:
    """Every kernel of a library or program that edgeq compiled with TVM, in the order of their names.

    Raises:
        SystemExit: llvm-objdump is not installed, or cannot read the file.
    """
    listings: dict[str, list[str]] = {}
    name, called = "", set()
    for line in disassembly(path):
        if symbol := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            # a kernel's own loops, and the body of its parallel one, stand behind the function that checks its arguments
            name = symbol[1].removeprefix("__tvm_ffi_").removesuffix("_compute_")
            listings.setdefault(name, [])
            called |= {name} if symbol[1].startswith("__tvm_ffi_") else set()
        elif name and (code := re.match(r"\s*[0-9a-f]+:\s(.*)", line)):
            listings[name].append(code[0])
    return [Kernel(n, tuple(loops(listings[n])), tuple(listings[n])) for n in sorted(called)]


def disassembly(path: Path) -> list[str]:
    """llvm-objdump's lines."""
    program = next((p for p in ("llvm-objdump-16", "llvm-objdump") if shutil.which(p)), None)
    if program is None:
        sys.exit("disassemble: llvm-objdump is not installed: apt-get install llvm-16")
    vectors = ["--mcpu=hexagonv67", "--mattr=+hvxv67,+hvx-length128b"] if path.read_bytes()[18:20] == HEXAGON else []
    command = [program, "-d", "--no-show-raw-insn", *vectors, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"disassemble: {done.stderr.strip()}")
    return done.stdout.splitlines()


def loops(listing: list[str]) -> list[Loop]:
    """Every loop, from a branch's target back to the branch or to the end of a hardware loop; last, what is in none."""
    lines = [(int(head, 16), body) for head, _, body in (line.strip().partition(":") for line in listing)]
    addresses = {address for address, _ in lines}
    spans: set[tuple[int, int]] = set()
    started: dict[str, int] = {}  # hardware loop → address of its first packet
    for address, body in lines:
        for level, target in HARDWARE_LOOP.findall(body):
            started[level] = int(target, 16)
        spans |= {(started[level], address) for level in re.findall(r":endloop([01])", body) if level in started}
        if branch := BRANCHES.search(body):
            spans.add((int(branch[2], 16), address))
    real = sorted((s for s in spans if s[0] in addresses and s[0] <= s[1]), key=lambda s: s[1] - s[0])
    bodies: dict[tuple[int, int] | None, list[str]] = {span: [] for span in [*real, None]}
    for address, body in lines:
        parts = [part.strip(" {}\t") for part in body.split(";")]  # Hexagon's packets hold several
        smallest = next((span for span in real if span[0] <= address <= span[1]), None)
        bodies[smallest] += [p for p in parts if p and not p.startswith(("immext", ":endloop"))]
    found = []
    for span, parts in bodies.items():
        counted = Counter(m for part in parts for m in MULTIPLIES.findall(part)[:1])
        found.append(Loop(len(parts), counted, span is not None))
    return found


def main() -> int:
    """Print the table, or one kernel's code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artefact", type=Path, help="model.so or model.elf")
    parser.add_argument("--listing", metavar="NAME", help="print the code of the kernels whose names begin so")
    options = parser.parse_args()
    found = kernels(options.artefact)
    if options.listing:
        for kernel in found:
            if kernel.name.startswith(options.listing):
                print(kernel.name, *kernel.listing, sep="\n")
        return 0
    print(f"{'kernel':44} {'loop':>5} {'share':>6}  multiplies")
    for kernel in found:
        loop = kernel.busiest
        said = ", ".join(f"{count} {name}" for name, count in loop.multiplies.most_common()) or "-"
        outside = "" if loop.closed or not loop.multiplies else "  (unrolled, in no loop)"
        print(f"{kernel.name:44} {loop.instructions:5} {loop.share:6.0%}  {said}{outside}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
