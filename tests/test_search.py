"""The search: what it believes, what it solves, what it tries, against least squares, all choices, and a runtime."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edgeq
from edgeq.assembly import as_task
from edgeq.search import explain, search
from edgeq.search.belief import Belief
from edgeq.search.bench import Bench
from edgeq.search.loop import Search, Wanted
from edgeq.search.solve import ENTERING, LEAVING, Linear, solve
from edgeq.search.space import Border, Space, Unit
from edgeq.search.trial import Trial
from edgeq.spec import EdgeqError, QuantPlan
from edgeq.task import batches as task_batches
from edgeq.task import load_task

TASK = """
import os
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    layers = []
    for i, (a, b) in enumerate([(3, 16), (16, 32), (32, 32), (32, 48)]):
        layers += [nn.Conv2d(a, b, 3, 1 + i % 2, 1), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)).eval()

def example_inputs():
    return (torch.zeros(1, 3, 48, 48),)

def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, 3, 48, 48, generator=generator) * (1 + 8 * (i == 0)),) for i in range(6)]

def calibration():
    return batches(1)

def evaluate(predict):
    network, near = model(), []
    with torch.no_grad():
        for (x,) in batches(2):
            want, got = network(x), predict(x)[0]
            near.append(float((want - got).square().mean()))
    return {"error": float(os.environ.get("EDGEQ_TEST_METRIC", sum(near)))}
"""


def space(units: int, seed: int = 0, precisions: tuple[str, ...] = ("w8a8", "fp32")) -> Space:
    """A chain of units with a shortcut from each to the next but one."""
    names = [f"layer{i}/conv2d" for i in range(units)]
    draws = np.random.default_rng(seed)
    made = tuple(
        Unit(
            n,
            (n,),
            {p: {n: p} for p in precisions},
            {p: int(draws.integers(1, 9)) * (1 if p != "fp32" else 4) for p in precisions},
            1000,
        )
        for n in names
    )
    borders = [Border(a, b, 64) for a, b in itertools.pairwise(names)] + [
        Border(a, b, 64) for a, b in zip(names, names[2:], strict=False)
    ]
    return Space(made, tuple(borders), QuantPlan("litert", "default", dict.fromkeys(names, "w8a8")))


def everything(of: Space) -> Iterator[dict[str, str]]:
    for picked in itertools.product(*(unit.plans for unit in of.units)):
        yield dict(zip((unit.name for unit in of.units), picked, strict=True))


def world(of: Space, seed: int) -> tuple[Linear, Linear]:
    """What plans cost and hurt, as some machine has it: integers are faster, and every conversion takes time."""
    draws = np.random.default_rng(seed)
    cost, harm = {}, {}
    for unit in of.units:
        base = float(draws.uniform(1, 3))
        for name in unit.plans:
            cost[unit.name, name] = base * (float(draws.uniform(0.3, 0.8)) if name != "fp32" else 1.0)
            harm[unit.name, name] = 0.0 if name == "fp32" else float(draws.uniform(1e-4, 1e-2))
    borders = {
        (b.source, b.reader, way): float(draws.uniform(0.01, 0.2)) for b in of.borders for way in (ENTERING, LEAVING)
    }
    return Linear(cost, borders), Linear(harm)


def amount(of: Space, quantity: Linear, choice: dict[str, str]) -> float:
    """By hand: each unit's own, and each border whose ends differ."""
    found = sum(quantity.units[u.name, choice[u.name]] for u in of.units)
    for border in of.borders:
        a, b = choice[border.source] != "fp32", choice[border.reader] != "fp32"
        if a != b:
            found += quantity.borders.get((border.source, border.reader, LEAVING if a else ENTERING), 0.0)
    return found


def test_a_belief_is_least_squares_with_what_was_believed_as_equations() -> None:
    draws = np.random.default_rng(0)
    mean, deviation = draws.uniform(1, 5, 6), draws.uniform(0.1, 2, 6)
    names = [f"n{i}" for i in range(6)]
    belief = Belief(dict(zip(names, mean, strict=True)), dict(zip(names, deviation, strict=True)))
    rows, values, noise = draws.integers(0, 3, (4, 6)), draws.uniform(3, 20, 4), draws.uniform(0.1, 1, 4)
    for row, value, sd in zip(rows, values, noise, strict=True):
        belief.observe({n: float(c) for n, c in zip(names, row, strict=True) if c}, float(value), float(sd))
    left = np.vstack([np.diag(1 / deviation), rows / noise[:, None]])
    right = np.concatenate([mean / deviation, values / noise])
    wanted = np.linalg.lstsq(left, right, rcond=None)[0]
    assert [belief.predict({n: 1.0})[0] for n in names] == pytest.approx(wanted, rel=1e-9)
    covariance = np.linalg.inv(left.T @ left)
    assert belief.predict(dict.fromkeys(names, 1.0))[1] == pytest.approx(math.sqrt(covariance.sum()), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_solved_is_the_best_of_all_choices(seed: int) -> None:
    of = space(8, seed)
    cost, harm = world(of, seed)
    amounts = sorted(amount(of, cost, choice) for choice in everything(of))
    for bound in (amounts[0], amounts[len(amounts) // 20], amounts[len(amounts) // 2]):
        found = solve(of, harm, [(cost, bound + 1e-9)])
        assert found is not None
        assert amount(of, cost, found) <= bound + 1e-6 and cost.of(of, found) == pytest.approx(amount(of, cost, found))
        best = min(amount(of, harm, c) for c in everything(of) if amount(of, cost, c) <= bound + 1e-9)
        assert amount(of, harm, found) == pytest.approx(best, rel=1e-3)
    assert solve(of, harm, [(cost, amounts[0] * 0.99)]) is None


def test_a_choice_that_is_left_out_is_not_found_again() -> None:
    of = space(4)
    cost, harm = world(of, 3)
    first = solve(of, cost, [])
    assert first is not None
    second = solve(of, cost, [], without=[first])
    ranked = sorted(everything(of), key=lambda choice: amount(of, cost, choice))
    assert [first, second] == ranked[:2]
    assert harm.of(of, of.uniform("fp32")) == 0


class Machine:
    """Trials on a machine whose costs are known, and which no two plans are told apart on by less than its noise."""

    def __init__(self, of: Space, seed: int, noise: float = 0.0) -> None:
        self.of, (self.cost, self.harm), self.made, self.noise = of, world(of, seed), 0, noise
        self.draws = np.random.default_rng(seed)

    def run(self, choice: dict[str, str], expected: tuple[float, float] | None = None) -> Trial:
        self.made += 1
        took = amount(self.of, self.cost, choice) * float(1 + self.noise * self.draws.standard_normal())
        hurts = amount(self.of, self.harm, choice)
        return Trial(
            dict(choice), hurts, self.of.size(choice), {"top1": 0.9 - hurts}, took,
            predicted=expected[0] if expected else None, deviation=expected[1] if expected else None,
        )  # fmt: skip

    def again(self, choice: dict[str, str]) -> float:
        return self.run(choice).latency_ms or 0.0


def searched(of: Space, machine: Machine, wanted: Wanted) -> Any:
    harms = {(u.name, n): machine.harm.units[u.name, n] for u in of.units for n in u.plans if n != "fp32"}
    return Search(of, machine, harms, wanted, lambda *_: None).run()  # type: ignore[arg-type] # a machine of our own


@pytest.mark.parametrize("seed", range(5))
def test_a_search_holds_its_budget_and_is_near_the_best_of_all(seed: int) -> None:
    of = space(10, seed)
    machine = Machine(of, seed)
    fast, slow = (amount(of, machine.cost, of.uniform(name)) for name in ("w8a8", "fp32"))
    budget = (fast + slow) / 2
    outcome = searched(of, machine, Wanted(budget=budget, rounds=12))
    within = [c for c in everything(of) if amount(of, machine.cost, c) <= budget]
    best, int8 = min(amount(of, machine.harm, c) for c in within), amount(of, machine.harm, of.uniform("w8a8"))
    assert outcome.best.latency_ms <= budget
    # totals alone are measured here, 14 of them for 56 unknown costs: nine tenths of what there is to gain
    assert int8 - outcome.best.noise >= 0.9 * (int8 - best)
    assert machine.made <= 12 + 2 + 1
    prices = [t.cost for t in outcome.front]
    assert prices == sorted(prices) and [t.noise for t in outcome.front] == sorted(
        (t.noise for t in outcome.front), reverse=True
    )


def test_a_drop_is_bisected_to_the_cheapest_that_keeps_to_it() -> None:
    of = space(8, 1)
    machine = Machine(of, 1)
    drop = 0.4 * amount(of, machine.harm, of.uniform("w8a8"))
    outcome = searched(of, machine, Wanted(drop=drop, rounds=12))
    assert outcome.best.noise <= drop
    best = min(amount(of, machine.cost, c) for c in everything(of) if amount(of, machine.harm, c) <= drop)
    fast, slow = (amount(of, machine.cost, of.uniform(name)) for name in ("w8a8", "fp32"))
    assert slow - outcome.best.latency_ms >= 0.8 * (slow - best) and fast <= outcome.best.latency_ms


def test_a_size_is_kept_to_where_nothing_is_timed() -> None:
    of = space(8, 2, ("w8a8", "w4a8", "fp32"))
    machine = Machine(of, 2)
    budget = of.size(of.uniform("fp32")) // 3
    machine.run = lambda choice, expected=None: Trial(dict(choice), amount(of, machine.harm, choice), of.size(choice))  # type: ignore[method-assign] # without a clock
    machine.again = lambda choice: None  # type: ignore[method-assign, assignment, return-value] # nor twice
    outcome = searched(of, machine, Wanted(size=budget, rounds=6))
    best = min(amount(of, machine.harm, c) for c in everything(of) if of.size(c) <= budget)
    assert outcome.best.size_bytes <= budget and outcome.best.noise == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted(budget=0.1), "the fastest that was measured takes"),
        (Wanted(budget=1e3), "within the budget of 1000: there is nothing to search for"),
        (Wanted(budget=10, metric="miou"), "there is none of that name; evaluate\\(\\) gives top1"),
        (Wanted(size=1, rounds=2), "no plan is within 1 bytes"),
    ],
)
def test_what_cannot_be_had_is_a_sentence(wanted: Wanted, said: str) -> None:
    of = space(5)
    with pytest.raises(EdgeqError, match=said):
        searched(of, Machine(of, 0), wanted)


def test_units_are_layers_with_what_follows_them() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, 1, 1) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(nn.functional.max_pool2d(x, 2)))
            return torch.relu(self.c(torch.relu(self.b(y)) + y)).flatten(1)

    task = as_task(Residual().eval(), (torch.zeros(1, 4, 8, 8),), [(torch.randn(1, 4, 8, 8),) for _ in range(2)], None)
    bench = Bench(task, "litert")
    found = bench.space(("w8a8", "fp32"))
    assert [unit.name for unit in found.units] == ["a/conv2d", "b/conv2d", "c/conv2d"]
    assert found.units[0].layers == ("max_pool2d", "a/conv2d", "relu")
    assert found.units[1].layers[:3] == ("b/conv2d", "relu#2", "add")
    assert {(b.source[0], b.reader[0], b.values) for b in found.borders} == {
        ("a", "b", 64),
        ("a", "c", 64),
        ("b", "c", 64),
    } - {("a", "c", 64)}
    weights = 4 * 4 * 9
    assert found.units[0].sizes == {"w8a8": weights + 4 * 4 + 4 * 4, "fp32": 4 * weights + 4 * 4}
    choice = found.uniform("w8a8") | {"b/conv2d": "fp32"}
    by_hand = edgeq.quantize(task, target="litert", plan=found.plan(choice))
    made = bench.model(found.plan(choice))
    assert made.qparams == by_hand.qparams and made.plan == by_hand.plan
    assert made.plan.layers["b/conv2d"] == made.plan.layers["add"] == "fp32"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "small.py"
    path.write_text(TASK)
    return path


def test_a_search_on_a_runtime_ends_in_an_exported_plan_and_measures_nothing_twice(task: Path, tmp_path: Path) -> None:
    size, out = 60_000, tmp_path / "out"
    asked: dict[str, Any] = {"to": "litert", "budget_bytes": size, "rounds": 3, "runs": 10, "output": out}
    found = search(task, **asked, metric="error", lower_is_better=True)
    assert found["size_bytes"] <= size and 4 <= found["measurements"] == len(found["trials"]) + 1  # the winner twice
    assert Path(found["artifact"]).stat().st_size == found["size_bytes"] and found["same_artifact"]
    assert 0 < found["metric"] < found["int8_metric"] and found["float_metric"] == pytest.approx(0, abs=1e-9)
    assert found["measured_ms"] > 0 and found["prediction_error"]["median"] >= 0
    assert [p["plan"] for p in found["front"]] == [f"plans/{i:02d}.json" for i in range(len(found["front"]))]
    told = json.loads((tmp_path / "out.search" / "search.json").read_text())
    assert told["front"] == found["front"] and (tmp_path / "out.search" / "search.html").stat().st_size > 5_000

    (best,) = (p for p in found["front"] if p["best"])
    again = edgeq.quantize(task, plan=tmp_path / "out.search" / best["plan"], output=tmp_path / "again")
    assert again.plan == edgeq.load(out).plan
    assert edgeq.export(again, "litert").path.read_bytes() == Path(found["artifact"]).read_bytes()
    same = edgeq.verify(out, to=["litert"])["backends"]["litert"]
    assert same["max_lsb"] == 0

    once_more = search(task, **asked, metric="error", lower_is_better=True)
    assert once_more["measurements"] == 1  # the winner's second time alone
    assert once_more["units"] and [u["precision"] for u in once_more["units"]] == [
        u["precision"] for u in found["units"]
    ]


def test_a_metric_that_is_nan_stops_the_search(task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEQ_TEST_METRIC", "nan")
    with pytest.raises(EdgeqError, match="evaluate\\(\\) returned NaN as 'error' of a plan"):
        search(task, to="litert", budget_bytes=60_000, output=tmp_path / "out", runs=2, rounds=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "needs something to stay within"),
        ({"budget_ms": -1.0}, "--budget-ms -1: give a number above 0"),
        ({"budget_ms": math.nan}, "--budget-ms nan: give a number above 0"),
        ({"budget_ms": 5.0, "precisions": ["w8a8"]}, "no layer has a choice between w8a8"),
        ({"budget_instructions": 10**6}, "host measures time: give --budget-ms"),
        ({"budget_ms": 5.0, "precisions": ["int8"]}, "unknown precision 'int8'"),
    ],
)
def test_a_question_that_has_no_answer_is_a_sentence(
    task: Path, tmp_path: Path, asked: dict[str, Any], said: str
) -> None:
    with pytest.raises(EdgeqError, match=said):
        search(task, to="litert", output=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()


def test_what_holds_the_time_and_what_makes_the_error_are_told(tmp_path: Path) -> None:
    class Cut(nn.Module):
        """Two convolutions in integers with an island between, and a third whose weights are of very unlike size."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Conv2d(8, 8, 3, 1, 1) for _ in range(3))
            with torch.no_grad():
                self.third.weight[:, 0] *= 200

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            y = torch.cumsum(y, 2) / 8
            return self.third(torch.relu(self.second(y)))

    torch.manual_seed(0)
    batches = [(torch.randn(1, 8, 32, 32),) for _ in range(3)]
    model = edgeq.quantize(Cut().eval(), example_inputs=batches[0], calibration=batches, output=tmp_path / "out")
    edgeq.export(model, "litert")
    found = explain(tmp_path / "out", to=["litert"], runs=10)
    assert "the task file is not at hand" in found["note"]
    row = found["backends"]["litert"]
    islands = [cause for cause in row["slow"] if cause["what"] == "float island"]
    assert any("cumsum" in key for cause in islands for key in cause["layers"])
    gains = [cause["gain_ms"] for cause in row["slow"]]
    assert (
        gains == sorted(gains, reverse=True) and sum(cause["ms"] for cause in row["slow"]) <= row["int8_ms"] * 1.1
    )  # medians do not quite add up
    assert {key for key in row} == {"int8_ms", "float_ms", "speedup", "max_lsb", "slow"}


def test_a_layer_in_float_gains_what_the_same_plan_by_hand_gains(task: Path, tmp_path: Path) -> None:
    model = edgeq.quantize(task, output=tmp_path / "out")
    edgeq.export(model, "litert")
    found = explain(tmp_path / "out", to=["litert"], runs=5)
    assert found["note"] == "" and found["wrong"]
    best = found["wrong"][0]
    plan = dict.fromkeys(best["layers"], "fp32")
    changed = edgeq.quantize(task, plan=QuantPlan("portable", "default", {**model.plan.layers, **plan}))
    batches = list(task_batches(load_task(task)))

    def noise(of: Any) -> float:
        floats = [model.float(batch)[0].double() for batch in batches]
        errors = [
            (of.qdq(batch)[0].double() - want).square().sum() for batch, want in zip(batches, floats, strict=True)
        ]
        return float(sum(errors) / sum(want.square().sum() for want in floats))

    assert best["gain_db"] == pytest.approx(10 * math.log10(noise(model) / noise(changed)), abs=1e-3)
