"""A search beside what people do without one, at equal measured latency: `tools/bench_search.py TASK.py --to litert`.

Baselines, each in the same space, on the same trials: int8 everywhere; k random layers in float, as many as the budget allows;
greedy, one layer at a time: each is put into float and timed in the network, then those that save most error for each
millisecond are put together while the budget holds, as published for PointPillars (arXiv 2601.12638); and a proxy, the same
program over bit operations (MACs times bits of weight and activation, 32 for float) in the place of milliseconds, whose limit is
halved towards the budget.

Prints a table, or with --json one object. Trials are kept in --work: the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.assembly import as_task
from edgeq.devices import open_device
from edgeq.run.place import Place
from edgeq.search.bench import Bench
from edgeq.search.cost import Costs
from edgeq.search.found import decibel
from edgeq.search.harm import harms
from edgeq.search.loop import Outcome, Search, Wanted
from edgeq.search.solve import Linear, solve
from edgeq.search.space import FLOAT, Space
from edgeq.search.trial import How, Trial, Trials

DRAWS = 5  # of random plans
HALVINGS = 6  # of the proxy's limit


@dataclass
class Counted:
    """Trials that one method asked for, known or not, as it alone would have had to make them."""

    trials: Trials
    space: Space
    asked: set[tuple[tuple[str, str], ...]]

    def run(self, choice: dict[str, str]) -> Trial:
        self.asked.add(tuple(sorted(choice.items())))
        return self.trials.run(choice)

    def in_float(self, names: Iterable[str]) -> dict[str, str]:
        return self.space.uniform("w8a8") | dict.fromkeys(names, FLOAT)


def randomly(counted: Counted, budget: float, rng: random.Random) -> Trial | None:
    """A random order of layers goes into float, as far as the budget allows: halved over how many."""
    order = [unit.name for unit in counted.space.free]
    rng.shuffle(order)
    low, high, best = 0, len(order), None
    while low < high:
        middle = (low + high + 1) // 2
        trial = counted.run(counted.in_float(order[:middle]))
        if (trial.cost or 0.0) <= budget:
            low, best = middle, trial
        else:
            high = middle - 1
    return best


def greedily(counted: Counted, budget: float) -> Trial | None:
    """Each layer in float alone is timed; then they are put together by error saved for each millisecond."""
    int8 = counted.run(counted.space.uniform("w8a8"))
    rated = []
    for unit in counted.space.free:
        trial = counted.run(counted.in_float([unit.name]))
        more = max((trial.cost or 0.0) - (int8.cost or 0.0), 1e-6)
        rated.append(((int8.noise - trial.noise) / more, unit.name))
    chosen: list[str] = []
    best: Trial | None = int8 if (int8.cost or 0.0) <= budget else None
    for gain, name in sorted(rated, reverse=True):
        if gain <= 0:
            break
        trial = counted.run(counted.in_float([*chosen, name]))
        if (trial.cost or 0.0) <= budget:
            chosen.append(name)
            best = trial if best is None or trial.noise < best.noise else best
    return best


def by_bit_operations(counted: Counted, harm: Linear, budget: float) -> Trial | None:
    """The search's own program over bit operations; its limit is halved until the measured time is within the budget."""
    units = {(u.name, p): u.macs * (64.0 if p == "w8a8" else 1024.0) for u in counted.space.units for p in u.plans}
    proxy = Linear(units)
    low, high = (proxy.of(counted.space, counted.space.uniform(name)) for name in ("w8a8", FLOAT))
    best = None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        choice = solve(counted.space, harm, [(proxy, middle)])
        trial = None if choice is None else counted.run(choice)
        if trial is not None and (trial.cost or 0.0) <= budget:
            low = middle
            best = trial if best is None or trial.noise < best.noise else best
        else:
            high = middle
    return best


def row(name: str, trial: Trial | None, measurements: int, metric: str | None) -> dict[str, Any]:
    """A method's plan as a row of the table."""
    told: dict[str, Any] = {"method": name, "measurements": measurements}
    if trial is None:
        return {**told, "ms": None, "sqnr_db": None, "metric": None, "in_float": None}
    value = trial.metric.get(metric or "") if trial.metric else None
    count = sum(p == FLOAT for p in trial.choice.values())
    return {**told, "ms": trial.latency_ms, "sqnr_db": decibel(trial.noise), "metric": value, "in_float": count}


def compared(args: argparse.Namespace) -> dict[str, Any]:
    """All methods at one budget, part of the way from the fastest plan's to float's."""
    say: Callable[..., None] = lambda stage, done, total: print(stage, flush=True) if ": " in stage else None  # noqa: E731 - a callback
    bench = Bench(as_task(args.task, None, None, None), args.to, recipe=args.recipe)
    space = bench.space(("w8a8", FLOAT))
    with open_device(args.device) as device:
        trials = Trials(bench, space, Place(device), How(threads=args.threads, runs=args.runs), args.work, say)
        int8, floating = (trials.run(space.uniform(name)) for name in ("w8a8", FLOAT))
        assert int8.cost is not None and floating.cost is not None
        costs = Costs(space, {"w8a8": int8.measured, FLOAT: floating.measured})
        fastest = solve(space, costs.linear(), [])
        assert fastest is not None
        least = costs.predict(fastest)[0]
        budget = least + args.part * (floating.cost - least)
        hurts = harms(bench, space, "sqnr", None, args.work, say)
        outcome: Outcome = Search(space, trials, hurts, Wanted(budget=budget, rounds=args.rounds), say).run()
        name = next(iter(int8.metric or {}), None)
        rows = [row("int8 everywhere", int8, 1, name), row("float everywhere", floating, 1, name)]
        rows.append(row("search", outcome.best, len(outcome.trials) + 1, name))
        for draw in range(DRAWS):
            counted = Counted(trials, space, set())
            found = randomly(counted, budget, random.Random(draw))
            rows.append(row(f"random {draw}", found, len(counted.asked), name))
        counted = Counted(trials, space, set())
        found = by_bit_operations(counted, outcome.harm, budget)
        rows.append(row("bit operations", found, len(counted.asked), name))
        if args.greedy:
            counted = Counted(trials, space, set())
            found = greedily(counted, budget)
            rows.append(row("greedy", found, len(counted.asked), name))
    errors = sorted(outcome.errors)
    return {
        "task": bench.task.name, "backend": args.to, "device": args.device, "budget_ms": budget, "metric": name, "rows": rows,
        "units": len(space.units), "prediction_errors": errors,
    }  # fmt: skip


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=Path)
    parser.add_argument("--to", default="litert")
    parser.add_argument("--device", default="host")
    parser.add_argument("--recipe", default="minmax")
    parser.add_argument(
        "--part",
        type=float,
        default=0.5,
        help="of the way from the fastest plan's expected time to float's that the budget is",
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--greedy", action="store_true", help="measure the greedy baseline, a trial for each layer")
    parser.add_argument("--work", type=Path, default=Path("build/bench_search"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work = args.work / f"{args.task.stem}-{args.to}"
    found = compared(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    print(f"{found['task']} on {found['backend']}: budget {found['budget_ms']:.3f} ms, {found['units']} units")
    for each in found["rows"]:
        ms, db = (f"{each[key]:.3f}" if each[key] is not None else "-" for key in ("ms", "sqnr_db"))
        print(
            f"{each['method']:18} {ms:>9} ms {db:>8} dB {each['metric']} float {each['in_float']} after {each['measurements']}"
        )
    print("prediction errors", [round(e, 4) for e in found["prediction_errors"]])


if __name__ == "__main__":
    main()
