"""Loss curves of 8-bit and 32-bit AdamW beside the noise between seeds: three trainings, three seeds, 2,000 steps.

python tools/bench_optim_curves.py [--training NAME ...] [--seeds 3] [--steps 2000] [--json FILE]
python tools/bench_optim_curves.py --zeros [--steps 2000]

Both optimizers see the same first weights and batches under one seed; each cell (training, optimizer, seed) runs on one
thread and is kept in --work, so that Ctrl-C costs the cell it meets and the same command goes on from there. All 18 cells
take about an hour of one core. Needs the folder EDGEQ_DATA, except for `lidar`.

--zeros shows instead what becomes of embedding rows that never have a gradient, beside bitsandbytes, which gets an
environment of its own (build/peers/bitsandbytes), made on the first run.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accuracy import ROOT, machine, table
from numpy.typing import NDArray
from peers.zero_gradients import OPTIMIZERS
from small_trainings import TRAININGS, Training
from torch import Tensor
from train_detector import one_cycle

Array = NDArray[np.float64]

PAIR: Final = ("torch.AdamW", "edgeq.AdamW8bit")
PACKAGES: Final = ("torch==2.13.0", "bitsandbytes==0.50.2")  # torch exactly: a range would take a build with CUDA
CLIP: Final = 10.0  # norm of the gradients of a whole network
LAST: Final = 200  # steps whose mean is a training's final loss
WINDOW: Final = 100  # steps of one point of a smoothed curve
QUANTILES: Final = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
)  # Student's t, 97.5 %, 1 to 9 degrees
HEADER: Final = (
    "training", "32-bit loss", "SD of seeds", "8-bit − 32-bit", "95 % interval", "along the curve", "held out", "32-bit",
    "8-bit", "state bytes a parameter", "curves overlap",
)  # fmt: skip


@cache
def training(name: str) -> Training:
    """The training of that name with its data, read once."""
    print(f"{name}: reading its data", file=sys.stderr, flush=True)
    return TRAININGS[name]()


def run(name: str, optimizer: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one cell: every step's loss, what held-out data says, and the state's bytes a parameter."""
    task = training(name)
    torch.manual_seed(seed)
    network = task.network().train()
    stepping = OPTIMIZERS[optimizer](network.parameters(), task.rate, task.decay)
    found: list[float] = []
    started = time.monotonic()
    for step in range(steps):
        loss = task.loss(network, np.random.default_rng([seed, step]))
        stepping.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        for group in stepping.param_groups:
            group["lr"] = task.rate * one_cycle(step / steps)
        stepping.step()
        found.append(loss.item())
        if step % WINDOW == WINDOW - 1 or step == steps - 1:
            pace, mean = (time.monotonic() - started) / (step + 1), float(np.mean(found[-WINDOW:]))
            said = f"{name}, {optimizer}, seed {seed}: step {step + 1}/{steps}, loss {mean:.4f}, {pace:.3f} s a step"
            print(said, file=sys.stderr, flush=True)
    return {
        "training": name,
        "optimizer": optimizer,
        "seed": seed,
        "steps": steps,
        "losses": found,
        "measure": task.measure,
        "held_out": task.held_out(network),
        "state_bytes_per_param": state_bytes(stepping) / sum(p.numel() for p in network.parameters()),
        "seconds": time.monotonic() - started,
        "torch": torch.__version__,
    }


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors that the optimizer keeps for its parameters."""
    kept = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


def cell(work: Path, name: str, optimizer: str, seed: int, steps: int) -> dict[str, Any]:
    """The cell kept in `work`, or a new one, which is then kept."""
    file = work / f"{name}-{optimizer}-{seed}-{steps}.json"
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(run(name, optimizer, seed, steps)), encoding="utf-8")
        part.replace(file)
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return kept


# ---------------------------------------------------------------- the verdict


def smoothed(losses: Array) -> Array:
    """Losses [seeds, steps] as means of WINDOW steps [seeds, points]; fewer steps than that are one point."""
    width = min(WINDOW, losses.shape[1])
    points = losses.shape[1] // width
    means: Array = losses[:, : points * width].reshape(len(losses), points, width).mean(2)
    return means


def verdict(exact: Array, quantized: Array) -> dict[str, Any]:
    """Compare two optimizers' losses [seeds, steps], same seeds, same batches.

    `difference` is that of the mean loss over the LAST steps, quantized − exact, with its 95 % interval by Student's t over
    the seeds' pairs; `spread` is the standard deviation of `exact`'s between seeds. `curve` is the root mean square of the
    mean difference over all points of the smoothed curves, in units of the spread at these points, pooled over both.
    Two sets of n runs of one optimizer that share no seed have sqrt(2 / n) there (`noise`). They `overlap` where `curve` is
    at most `noise` and the final difference at most the spread.
    """
    count = len(exact)
    pairs = quantized[:, -LAST:].mean(1) - exact[:, -LAST:].mean(1)
    half = QUANTILES[count - 2] * float(pairs.std(ddof=1)) / math.sqrt(count)
    difference, spread = float(pairs.mean()), float(exact[:, -LAST:].mean(1).std(ddof=1))
    a, b = smoothed(exact), smoothed(quantized)
    between = np.sqrt(np.mean([a.var(0, ddof=1), b.var(0, ddof=1)]))
    curve, noise = float(np.sqrt(np.mean((b - a).mean(0) ** 2)) / between), math.sqrt(2 / count)
    return {
        "loss": float(exact[:, -LAST:].mean()),
        "spread": spread,
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "curve": curve,
        "noise": noise,
        "overlap": curve <= noise and abs(difference) <= spread,
    }


def row(name: str, cells: dict[str, list[dict[str, Any]]]) -> tuple[list[str], dict[str, Any]]:
    """A training's line of the table and the same as a record, with every cell's smoothed curve."""
    exact, quantized = (np.array([c["losses"] for c in cells[o]]) for o in PAIR)
    v = verdict(exact, quantized)
    size = [f"{cells[o][0]['state_bytes_per_param']:.2f}" for o in PAIR]
    held = ([c["held_out"] for c in cells[o]] for o in PAIR)
    said = [f"{np.mean(h):.2f} ± {np.std(h, ddof=1):.2f}" for h in held]
    line = [
        TRAININGS[name].title,
        f"{v['loss']:.4f}",
        f"{v['spread']:.4f}",
        f"{v['difference']:+.4f}",
        f"[{v['low']:+.4f}, {v['high']:+.4f}]",
        f"{v['curve']:.2f} (noise {v['noise']:.2f})",
        TRAININGS[name].measure,
        *said,
        " / ".join(size),
        "yes" if v["overlap"] else "no",
    ]
    points = {o: smoothed(losses).tolist() for o, losses in zip(PAIR, (exact, quantized), strict=True)}
    return line, {"training": name, "steps": exact.shape[1], "seeds": len(exact), **v, "cells": points}


# ---------------------------------------------------------------- rows without a gradient


def environment(folder: Path) -> Path:
    """bitsandbytes' own Python, installed where it is missing."""
    python, stamp = folder / "venv" / "bin" / "python", folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != "\n".join(PACKAGES):
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        for package in PACKAGES:
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
        stamp.write_text("\n".join(PACKAGES))
    return python


def zeros(folder: Path, steps: int) -> list[dict[str, Any]]:
    """Every optimizer's drift of embedding rows without a gradient, each in a process of its own."""
    script = Path(__file__).parent / "peers" / "zero_gradients.py"
    found = []
    for name in OPTIMIZERS:
        python = str(environment(folder)) if name.startswith("bitsandbytes") else sys.executable
        done = subprocess.run([python, str(script), name, str(steps)], stdout=subprocess.PIPE, check=True, text=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{name}: {found[-1]}", file=sys.stderr, flush=True)
    return found


def zeros_table(found: Sequence[dict[str, Any]]) -> str:
    """One line an optimizer, in per cent of the weights' standard deviation at the start."""
    header = (
        "optimizer",
        "unseen values that moved %",
        "by, mean",
        "by, largest",
        "their mean moved by",
        "seen values moved by",
    )
    numbers = ("moved", "unseen_mean", "unseen_largest", "unseen_shift", "seen_mean")
    return table(header, [[f["optimizer"], *(f"{100 * f[n]:.2f}" for n in numbers)] for f in found])


def main() -> None:
    """Parse the command line, train what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", choices=tuple(TRAININGS), action="append", help="this alone; repeat for several")
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, len(QUANTILES) + 2), metavar="2…10")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--zeros", action="store_true", help="rows without a gradient instead")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "curves", help="folder of finished cells")
    parser.add_argument(
        "--peers", type=Path, default=ROOT / "build" / "peers" / "bitsandbytes", help="their environment"
    )
    parser.add_argument("--json", type=Path, help="write the records there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.zeros:
        records = zeros(args.peers, args.steps)
        body = f"{args.steps} steps, distances in % of the initial standard deviation\n\n{zeros_table(records)}"
    else:
        names = args.training or list(TRAININGS)
        try:
            # seeds outermost: what is there after an interruption is every training with fewer seeds
            for seed in range(args.seeds):
                for name in names:
                    for optimizer in PAIR:
                        cell(args.work, name, optimizer, seed, args.steps)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            raise SystemExit(130) from None
        lines, records = [], []
        for name in names:
            cells = {o: [cell(args.work, name, o, seed, args.steps) for seed in range(args.seeds)] for o in PAIR}
            line, record = row(name, cells)
            lines.append(line)
            records.append(record)
        body = f"{args.steps} steps, {args.seeds} seeds, one thread\n\n{table(HEADER, lines)}"
    if args.json:
        args.json.write_text(json.dumps(records, indent=1), encoding="utf-8")
    print(f"{body}\n\n{machine()}")


if __name__ == "__main__":
    main()
