"""TVM's int8 kernels beside XNNPACK's (ExecuTorch) and TVM's own float, on this host, with one and with two threads.

python tools/bench_tvm.py [--network resnet20 ...] [--threads 1 2] [--rounds 15] [--folder build/bench_tvm]

Every artefact has a process of its own, and these take turns: in each round each makes as many calls as fill CALL_MS.
Ratios are medians of the rounds' ratios, so that what else the computer does falls on both sides. `least ms` is the best
round's. With more threads than idle cores a time says more about the other work than about the kernels: `idle` is the
share of all cores that was idle while nothing of ours ran. Networks are quantized and exported once, into --folder; they
need the folder EDGEQ_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accuracy import ROOT, machine, table

NETWORKS = {"resnet20": "resnet20_cifar10", "efficientnet": "efficientnet_lite0", "centerpoint": "centerpoint_pillar"}
CALL_MS = 60.0  # calls a round
PAUSE_S = 0.3  # TVM's threads look for work 0.12 s of processor time long before they sleep
PEERS = (("tvm", "model"), ("executorch", "model"), ("tvm", "float"))
HEADER = ("network", "threads", "TVM int8 ms", "least ms", "XNNPACK int8 ms", "least ms", "TVM / XNNPACK", "TVM float ms",
          "float / int8", "idle %")  # fmt: skip


@dataclass
class Peer:
    """One artefact in a process of its own."""

    backend: str
    path: Path
    threads: int
    medians: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start the process and make sure that it runs."""
        command = [sys.executable, __file__, "--serve", self.backend, str(self.path), "--threads", str(self.threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.calls = 3
        self.calls = max(3, int(CALL_MS / self.ask()))
        self.medians.clear()

    def ask(self) -> float:
        """The median of one round, in milliseconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{self.calls}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"bench_tvm: {self.path} does not run")
        self.medians.append(statistics.median(json.loads(line)))
        return self.medians[-1]

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(backend: str, path: Path, threads: int) -> None:
    """For each number read from stdin, print the milliseconds of so many calls."""
    from edgeq.backends.timing import times
    from edgeq.graph import package

    inputs = package.load(path.parents[1]).golden
    if backend == "tvm":
        from edgeq.backends.tvm.run import open_library, to_tvm

        main, arguments = open_library(path, threads=threads)["main"], to_tvm(inputs)

        def call() -> object:
            return main(*arguments)
    else:
        from edgeq.backends.executorch.run import open_module

        module = open_module(path, threads=threads)

        def call() -> object:
            return module.forward(list(inputs))

    out, sys.stdout = sys.stdout, sys.stderr  # some runtimes print
    for line in sys.stdin:
        print(json.dumps(times(call, 3, int(line))), file=out, flush=True)


def exported(network: str, folder: Path) -> Path:
    """The model folder with its artefacts, made where it is not there."""
    from edgeq import api

    home = folder / network
    if not (home / "plan.json").is_file():
        os.environ.setdefault("EDGEQ_FRAMES", "4")  # of lidar scenes; what is timed does not depend on them
        api.quantize(ROOT / "examples" / f"{NETWORKS[network]}.py", output=home)
    for backend, name in PEERS:
        api.export(home, backend, float_twin=name == "float")
    return home


def idle() -> float:
    """The share of all cores' time that is idle in half a second, in percent; not a number without /proc/stat."""
    if not Path("/proc/stat").is_file():
        return float("nan")

    def read() -> tuple[int, int]:
        ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return ticks[3] + ticks[4], sum(ticks)

    before = read()
    time.sleep(0.5)
    after = read()
    return 100 * (after[0] - before[0]) / max(after[1] - before[1], 1)


def measure(network: str, home: Path, threads: int, rounds: int) -> list[str]:
    """One line of the table."""
    suffix = {"tvm": "so", "executorch": "pte"}
    peers = [Peer(backend, home / backend / f"{name}.{suffix[backend]}", threads) for backend, name in PEERS]
    free = []
    for _ in range(rounds):
        time.sleep(PAUSE_S)
        free.append(idle())
        for peer in peers:
            time.sleep(PAUSE_S)
            peer.ask()
    for peer in peers:
        peer.close()
    ours, theirs, floating = (peer.medians for peer in peers)
    against = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    faster = statistics.median(a / b for a, b in zip(floating, ours, strict=True))
    times = [f"{statistics.median(ours):.3f}", f"{min(ours):.3f}", f"{statistics.median(theirs):.3f}"]
    times += [f"{min(theirs):.3f}", f"{against:.2f}×", f"{statistics.median(floating):.2f}", f"{faster:.1f}×"]
    return [network, str(threads), *times, f"{statistics.median(free):.0f}"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench_tvm")
    parser.add_argument("--keep", action="store_true", help="time what was exported before")
    parser.add_argument("--serve", nargs=2, metavar=("BACKEND", "PATH"), help=argparse.SUPPRESS)
    options: Any = parser.parse_args()
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]), options.threads[0])
        return 0
    rows = []
    for network in options.network:
        home = options.folder / network if options.keep else exported(network, options.folder)
        rows += [measure(network, home, threads, options.rounds) for threads in options.threads]
    print(f"{machine()}\n\n{table(HEADER, rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
