#!/usr/bin/env python3
"""Times a step of 8-bit AdamW beside torch's float32, torchao's and bitsandbytes' 8-bit ones, in turns in one process.

    python tools/bench_optim.py --json optim.json

prints a table: milliseconds a step, how many times faster than bitsandbytes and slower than torch's fused step, and bytes of
state a parameter. The JSON is a list of `optimizer`, `params`, `threads`, `ms_per_step`, `state_bytes_per_param`. The peers
get an environment of their own (build/peers/optim), made on the first run; it sees this one's torch and edgeq. `--paths`
adds rows for the kernel's other paths, as `edgeq.AdamW8bit(avx2)`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("bitsandbytes==0.50.0", "torchao==0.18.0")
SIZES = (1 << 20, 1 << 24, 100_000_000)
FUSED, BITSANDBYTES, OWN = "torch.AdamW(fused)", "bitsandbytes.AdamW8bit", "edgeq.AdamW8bit"
SLOW = (
    5  # all but the two that are to be compared take part in every SLOW-th round: they need seconds, not milliseconds
)
WARM_UP = 2  # steps before the first that counts: states are made, torch.compile compiles


def main() -> None:
    """Make the environment, run in it, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, nargs="*", default=SIZES, help="values of the parameter")
    parser.add_argument("--threads", type=int, nargs="*", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=25, help="steps of each optimizer, in turns")
    parser.add_argument("--paths", nargs="*", default=(), help="avx2, avx512, plain or torch: rows of their own")
    parser.add_argument("--json", type=Path, help="write the list here")
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers" / "optim", help="their environment")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # this process is in that environment
    options = parser.parse_args()
    if not options.inside:
        python = environment(options.peers)
        sys.exit(subprocess.run([str(python), *sys.argv, "--inside"]).returncode)
    found = []
    for params in options.params:
        for threads in options.threads:
            found += measured(params, threads, options.rounds, tuple(options.paths))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def environment(folder: Path) -> Path:
    """The peers' own Python, installed where it is missing, with this one's packages behind its own."""
    python, stamp = folder / "venv" / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join((*PACKAGES, sysconfig.get_path("purelib")))
    if not stamp.is_file() or stamp.read_text() != wanted:
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        site = next((folder / "venv").glob("lib/python*/site-packages"))
        (site / "behind.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        for package in PACKAGES:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
        stamp.write_text(wanted)
    return python


def optimizers(paths: tuple[str, ...]) -> dict[str, tuple[str, Callable[[list[Any]], Any]]]:
    """Name → the kernel's path that it asks for (empty: the fastest), and how it is made."""
    import bitsandbytes
    import torchao.optim

    from edgeq.optim import AdamW8bit

    def own(parameters: list[Any]) -> AdamW8bit:
        return AdamW8bit(parameters, lr=1e-4)

    return {
        OWN: ("", own),
        **{f"{OWN}({path})": (path, own) for path in paths},
        FUSED: ("", lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True)),
        "torch.AdamW(foreach)": ("", lambda p: torch.optim.AdamW(p, lr=1e-4, foreach=True)),
        "torchao.AdamW8bit": ("", lambda p: torchao.optim.AdamW8bit(p, lr=1e-4)),
        BITSANDBYTES: ("", lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-4)),
    }


def measured(params: int, threads: int, rounds: int, paths: tuple[str, ...]) -> list[dict[str, Any]]:
    """Steps of one parameter of `params` values, all optimizers in turns; medians."""
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.randn(params, generator=draw))
    p.grad = torch.randn(params, generator=draw) * 1e-2
    made = {name: (path, make([p])) for name, (path, make) in optimizers(paths).items()}
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(-WARM_UP, rounds):
        for name, (path, optimizer) in made.items():
            if turn > 0 and turn % SLOW and name not in (OWN, FUSED):
                continue
            os.environ["EDGEQ_OPTIM"] = path
            start = time.perf_counter()
            optimizer.step()
            if turn >= 0:
                times[name].append((time.perf_counter() - start) * 1e3)
        print(
            f"\r{params} parameters, {threads} threads: round {turn + 1}/{rounds} ", end="", file=sys.stderr, flush=True
        )
    print(file=sys.stderr)
    found = [
        {
            "optimizer": name,
            "params": params,
            "threads": threads,
            "ms_per_step": round(statistics.median(times[name]), 3),
            "state_bytes_per_param": round(state_bytes(optimizer.state[p]) / params, 4),
        }
        for name, (_, optimizer) in made.items()
    ]
    del made
    gc.collect()
    return found


def state_bytes(state: dict[str, Any]) -> int:
    """Of the tensors that grow with the parameter: not the map, which all share."""
    total = 0
    for name, value in state.items():
        if name.startswith("qmap") or not isinstance(value, torch.Tensor):
            continue
        parts = (value.codes, value.scale) if hasattr(value, "codes") else (value,)
        total += sum(part.numel() * part.element_size() for part in parts)
    return total


def table(found: list[dict[str, Any]]) -> str:
    """Markdown, with the ratios within each size and number of threads."""
    lines = [
        f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}, {', '.join(PACKAGES)}",
        "",
        "| parameters | threads | optimizer | ms a step | of bitsandbytes | of torch's fused | state bytes |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found:
        beside = {r["optimizer"]: r for r in found if (r["params"], r["threads"]) == (row["params"], row["threads"])}
        faster = beside[BITSANDBYTES]["ms_per_step"] / row["ms_per_step"]
        slower = row["ms_per_step"] / beside[FUSED]["ms_per_step"]
        lines.append(
            f"| {row['params'] / 1e6:.3g} M | {row['threads']} | {row['optimizer']} | {row['ms_per_step']:.3g} "
            f"| {faster:.1f}× faster | {slower:.2f}× | {row['state_bytes_per_param']:.3f} |"
        )
    return "\n".join(lines)


def processor() -> str:
    """Its name, and which of the instruction sets that matter here it has."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    name = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    sets = [s for s in ("avx2", "avx512bw", "avx512_vbmi", "avx512vbmi", "asimd") if f" {s}" in text]
    return f"{name or platform.machine()} ({', '.join(sets)})"


if __name__ == "__main__":
    main()
