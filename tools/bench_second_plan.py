"""What a second plan costs once a float pass was made: EfficientNet-Lite0, seconds of processor time on one thread.

python tools/bench_second_plan.py [--rounds 5]

The first row is a whole `edgeq.quantize`; the others annotate, resolve and convert a plan from statistics that are kept, as a
search does. Medians over rounds, all rows in turns. Needs edgeq[demo].
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
import warnings
from functools import partial

import torch
from accuracy import ROOT, machine, table

from edgeq import api, backends
from edgeq.assembly import confirmed, plan_of
from edgeq.calib.calibrate import calibrate
from edgeq.calib.data.observation import Statistics
from edgeq.calib.recipes import recipe
from edgeq.graph.annotate import annotate, in_float
from edgeq.graph.convert import convert
from edgeq.task import load_task

PLANS = {"all layers": (), "the last layer in float": ("_fc*",), "blocks 1, 10 to 15 in float": ("*_blocks.1*",)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    task = dataclasses.replace(load_task(ROOT / "examples" / "efficientnet_lite0.py"), evaluate=None)
    assert task.calibration is not None
    captured, _ = confirmed(task)
    target, method, kept = backends.target("portable"), recipe("default"), Statistics()
    whole = plan_of(captured, target, method, "w8a8", None, ())
    seconds: dict[str, list[float]] = {name: [] for name in ("edgeq.quantize", *PLANS)}
    for turn in range(rounds + 1):  # the first one fills the statistics
        start = time.process_time()
        api.quantize(task)
        told = {"edgeq.quantize": time.process_time() - start}
        for name, patterns in PLANS.items():
            start = time.process_time()
            plan = in_float(whole, patterns) if patterns else whole
            again = partial(annotate, captured, target, plan)
            found = calibrate(captured, again(), method, task.calibration(), api.silent, again=again, statistics=kept)
            convert(captured, *found)
            told[name] = time.process_time() - start
        for name, spent in told.items() if turn else ():
            seconds[name].append(spent)
    rows = [[name, f"{statistics.median(s):.2f}", f"{min(s):.2f} to {max(s):.2f}"] for name, s in seconds.items()]
    print(table(("plan", "median CPU s", "range"), rows))
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
