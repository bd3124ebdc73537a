"""What verify says about numbers that are none, and about conditions that are none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from edgeq.graph.far import sqnr_db
from edgeq.graph.store import plain
from edgeq.run.condition import NAMES, condition, conditions, holding
from edgeq.run.metric import evaluate
from edgeq.run.verify import _compare
from edgeq.spec import EdgeqError, TensorInfo
from edgeq.task import Task

INFO = TensorInfo("y", (4,), "float32")
NAN, INF = math.nan, math.inf


def compared(got: list[float], wanted: list[float], read: float = 0.0):
    a, b = torch.tensor(got), torch.tensor(wanted)
    return _compare(INFO, read, [a], [b], [b], [b])


@pytest.mark.parametrize("same", [[1.0, NAN, 2.0, 3.0], [1.0, INF, -INF, 3.0], [NAN] * 4])
def test_the_same_nan_and_infinity_are_equal(same: list[float]) -> None:
    parity = compared(same, same)
    assert (parity.max_lsb, parity.exact_share, parity.qdq_lsb, parity.sqnr_db) == (0, 1, 0, INF)


@pytest.mark.parametrize("other", [NAN, INF, -INF])
def test_one_that_is_no_number_is_infinitely_far(other: float) -> None:
    for got, wanted in (([1.0, 2.0, 3.0, other], [1.0, 2.0, 3.0, 4.0]), ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, other])):
        parity = compared(got, wanted)
        assert (parity.max_lsb, parity.exact_share, parity.sqnr_db) == (INF, 0.75, -INF)
        row = {"max_lsb": parity.max_lsb}
        assert condition("max_lsb>1").holds(row) and condition("max_lsb>1").holds(plain(row))  # as JSON keeps it


def test_an_output_of_one_number_is_measured_by_its_size() -> None:
    parity = compared([0.501], [0.5])
    assert parity.max_lsb == pytest.approx(0.001 / 0.5 * 255, rel=1e-3)


def test_rounding_of_large_values_that_cancel_is_no_difference() -> None:
    zeros, rounding = [0.0] * 4, [3e-8, 0.0, -3e-8, 0.0]
    assert compared(rounding, zeros).max_lsb > 1e6, "as long as nobody says what it was computed of"
    assert compared(rounding, zeros, read=1.5).max_lsb < 0.1
    assert compared([0.1, 0.0, 0.0, 0.0], zeros, read=1.5).max_lsb > 1e3


def test_rounding_of_a_nearly_constant_output_is_no_difference() -> None:
    one = 1.0
    last = 1.0 + 2**-22  # two units in the last place, all of the output's range
    assert compared([one, last, one, last], [last, one, last, one]).max_lsb < 1
    assert compared([one, one + 0.01, one, one], [one, one, one, one + 0.01]).max_lsb == pytest.approx(255, rel=1e-3)


def test_sqnr_of_finite_numbers_is_as_defined() -> None:
    assert sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(20)


@pytest.mark.parametrize("text", ["max_lsb>1.2.3", "max_lsb>.", "max_lsb>", "max_lsb>1e", ">1"])
def test_a_condition_without_a_number_is_refused(text: str) -> None:
    with pytest.raises(EdgeqError, match="write a name, a comparison and a number"):
        condition(text)


@pytest.mark.parametrize("verb", ["export", "verify", "profile"])
def test_a_condition_on_what_no_verb_reports_is_refused_with_the_names_there_are(verb: str) -> None:
    with pytest.raises(EdgeqError, match=rf"{verb} reports no 'foo'; choose from .*{NAMES[verb][0]}"):
        conditions(["foo>1"], verb)
    assert conditions([f"{name}>1" for name in NAMES[verb]], verb)
    assert [c.name for c in conditions(["top1<0.5"], "verify", ["top1"])] == ["top1"]


def test_conditions_hold_for_the_runtimes_they_hold_for() -> None:
    rows: dict[str, dict[str, Any]] = {
        "a": {"sqnr_db": 24.0, "max_lsb": 0, "metric": {"top1": 0.5}},
        "b": {"sqnr_db": None, "max_lsb": 2, "metric": None},  # null: nothing differs from float
        "c": {"sqnr_db": None, "max_lsb": None},  # NaN where only one has it: infinitely far in both
        "d": {"error": "does not load"},
    }
    made = [condition(text) for text in ("sqnr_db<25", "max_lsb>1", "top1<0.6")]
    assert holding(made, rows) == {
        "a": ["sqnr_db<25", "top1<0.6"],
        "b": ["max_lsb>1"],
        "c": ["sqnr_db<25", "max_lsb>1"],
    }
    with pytest.raises(EdgeqError, match="a, b, c gave no top5"):
        holding([condition("top5<1")], rows)


def test_times_are_compared_by_their_percentile() -> None:
    row = {"total_ms": {"median": 10, "p10": 9, "p90": 21, "runs": 30}, "speedup": 1.1}
    texts = ["p90_ms>20", "median_ms>20", "p10_ms>=9", "speedup<1.2"]
    assert holding(conditions(texts, "profile"), {"tvm": row}) == {"tvm": ["p90_ms>20", "p10_ms>=9", "speedup<1.2"]}


def test_evaluate_that_fails_or_returns_no_numbers_is_one_sentence() -> None:
    def task(function: Any) -> Task:
        return Task("t", lambda: nn.Identity(), lambda: ({"a": torch.zeros(1), "b": torch.ones(1)},), None, function)

    def same(inputs: Any) -> Any:
        return tuple(inputs)

    for function, message in (
        (lambda predict: 1 / 0, "evaluate\\(\\) failed: ZeroDivisionError"),
        (lambda predict: 0.7, "evaluate\\(\\) returned 0.7; return named numbers"),
        (lambda predict: {"top1": [1]}, "return named numbers"),
        (lambda predict: predict({"a": torch.zeros(1)}), "lacks 'b'"),
    ):
        with pytest.raises(EdgeqError, match=message):
            evaluate(task(function), same)
    swapped = task(lambda predict: {"b": predict({"b": torch.full((1,), 7.0), "a": torch.zeros(1)})[1]})
    assert evaluate(swapped, same) == {"b": 7}
