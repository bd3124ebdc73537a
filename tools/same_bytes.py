"""Does a task give the same bytes for any number of threads? Quantizes it once for each, and compares what was written.

python tools/same_bytes.py examples/efficientnet_lite0.py --recipe dfq --threads 1 2 3
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

import edgeq
from edgeq.task import load_task


def written(task: Path, recipe: str, precision: str | None, threads: int) -> dict[str, str]:
    """SHA-256 of every file of the model folder."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    options = {} if precision is None else {"precision": precision, "target": "simulated"}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        out = Path(folder) / "model"
        edgeq.quantize(load_task(task), recipe=recipe, output=out, **options)
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.iterdir())}


def main() -> int:
    """0 where all files are equal, 1 where some differ, which it names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    found = []
    for threads in given.threads:
        start = time.perf_counter()
        found.append(written(given.task, given.recipe, given.precision, threads))
        print(f"{threads} threads: {time.perf_counter() - start:.1f} s", flush=True)
    other = sorted({name for made in found for name in found[0] if made[name] != found[0][name]})
    print(f"differ: {', '.join(other)}" if other else f"all {len(found[0])} files are equal")
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
