"""Rows of a latency report: whose time it is, and that all of it adds up; on events written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeq.backends.alignment import align
from edgeq.backends.timing import WAITING, Event, alternate, overhead, report, settle
from edgeq.run.profile import from_result
from edgeq.spec import Artifact, EdgeqError, OpLatency, OpPlacement

NUMBERS = st.floats(0, 1e3, allow_nan=False)


def totals(rows: tuple[OpLatency, ...]) -> float:
    return sum(row.ms for row in rows)


@given(st.lists(st.lists(NUMBERS, min_size=7, max_size=7), min_size=1, max_size=8), st.floats(1e-3, 1e4))
def test_rows_add_up_to_the_total_whatever_was_measured(runs: list[list[float]], total: float) -> None:
    rows = [OpLatency(str(i), 0.0, run_ms=tuple(ms)) for i, ms in enumerate(runs)]
    settled, scale = settle(total, rows)
    assert totals(settled) == pytest.approx(total, rel=1e-9)
    assert all(row.ms >= 0 for row in settled) and 0 < scale <= 1
    assert settled[-1].kind == "unattributed"
    assert (scale == 1) or settled[-1].ms == pytest.approx(0, abs=1e-9 * total)


def test_a_disturbed_run_is_in_no_row_and_tracing_that_costs_time_is_said() -> None:
    rows = [OpLatency("conv", 0.0, run_ms=(1.0,) * 7 + (9.0,)), OpLatency("add", 0.0, run_ms=(0.5,) * 8)]
    settled, scale = settle(2.0, rows)
    assert [row.ms for row in settled] == [1.0, 0.5, 0.5] and scale == 1
    settled, scale = settle(1.2, rows)
    assert [row.ms for row in settled] == pytest.approx([0.8, 0.4, 0.0]) and scale == pytest.approx(0.8)


def test_time_on_no_core_is_a_row_of_its_own() -> None:
    rows = [OpLatency("conv", 0.0, run_ms=(2.0,) * 5)]
    found = report(
        [10.0, 10.0, 10.0, 2.5, 2.5],
        rows,
        backend="b",
        versions={},
        threads=1,
        warmup=0,
        waited=[7.5, 7.5, 7.5, 0.0, 0.0],
    )
    assert {row.name: row.ms for row in found.rows} == {"conv": 2.0, WAITING: 7.5, "unattributed": 0.5}
    assert found.total_ms.median == 10 and found.unattributed_ms == 0.5
    quiet = report([2.5] * 5, rows, backend="b", versions={}, threads=1, warmup=0, waited=[0.0] * 5)
    assert [row.name for row in quiet.rows] == ["conv", "unattributed"]
    assert report([2.5], backend="b", versions={}, threads=1, warmup=0, method="m").unattributed_ms is None


def test_overhead_is_what_a_call_takes_beside_its_operators() -> None:
    inner = [Event("a", "delegated", (1.0, 2.0), 0), Event("b", "delegated", (1.0, 1.0), 0)]
    (row,) = overhead("delegate overhead", [Event("DELEGATE_CALL", "delegate", (2.5, 3.5), 0)], inner)
    assert row.run_ms == (0.5, 0.5) and row.kind == "overhead"
    assert overhead("delegate overhead", [], inner) == []


def test_traced_and_untraced_runs_take_turns() -> None:
    order: list[str] = []
    spent, seen = alternate(lambda: order.append("u"), lambda: order.append("t") or len(order), warmup=2, runs=7)
    assert len(spent) == len(seen) == 7
    assert "".join(order) == "uut" + "u" + "uuuuu" + "t" + "ttttt" + "u" + "uu" + "t" + "tt"


def test_operators_find_the_names_xnnpack_gives_them() -> None:
    types = [
        "PAD",
        "CONV_2D",
        "PAD",
        "DEPTHWISE_CONV_2D",
        "CONV_2D",
        "ADD",
        "RELU",
        "MEAN",
        "RESHAPE",
        "FULLY_CONNECTED",
    ]
    names = [
        "Constant Pad (ND, X8)", "Transpose (ND, X8) Transpose", "Convolution (NHWC, QC8) IGEMM",
        "Convolution (NHWC, QC8) DWConv", "Fully Connected (NC, QS8, QC8W) GEMM", "Add (ND)", "Mean (ND) Reduce",
        "Static Reshape (NC)", "Fully Connected (NC, QS8, QC8W) GEMM",
    ]  # fmt: skip
    assert align(types, names) == [(0,), (), (1,), (3, 2), (4,), (5, 6), (7,), (8,), (9,)]


def test_a_concatenation_owns_all_its_copies_and_a_table_its_activation() -> None:
    types = ["Conv2d", "Concatenate3", "Convert", "Gelu", "Convert", "Conv2d"]
    names = ["Convolution (NHWC, QC8) IGEMM #1", "Copy (NC, X8) #1", "Copy (NC, X8) #2", "Copy (NC, X8) #3",
             "Invalid Unary Op #1", "Convolution (NHWC, QC8) IGEMM #2"]  # fmt: skip
    found = align(types, names)
    assert [at[0] for at in found] == [0, 1, 1, 1, 3, 5]
    assert {i for at in found for i in at} == set(range(6))


def test_a_clip_of_its_own_belongs_to_the_operator_before_it() -> None:
    assert align(["ADD", "MEAN"], ["Add (ND) #1", "Clamp (NC) #1", "Mean (ND) #1"]) == [(0,), (0,), (1,)]


def test_nothing_in_common_is_nothing_found() -> None:
    assert align([], ["Add (ND)"]) == [()]
    assert align(["ADD"], []) == []
    assert align(["CONV_2D"], ["Softmax (NC, F32)"]) == [()]


@given(st.lists(st.sampled_from(["CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN", "RESHAPE"]), max_size=12), st.data())
def test_what_is_named_once_each_is_found_in_order(types: list[str], data: st.DataObject) -> None:
    said = {"CONV_2D": "Convolution (NHWC, QC8) IGEMM", "DEPTHWISE_CONV_2D": "Convolution (NHWC, QC8) DWConv",
            "ADD": "Add (ND)", "MEAN": "Mean (ND)", "RESHAPE": "Static Reshape (NC)"}  # fmt: skip
    names = [said[t] for t in types]
    at = data.draw(st.integers(0, len(names)))
    names.insert(at, "Transpose (ND, X8) Transpose")
    found = align(types, names)
    assert found[at] == () and [i for i, *_ in (f for f in found if f)] == list(range(len(types)))


def library(folder: Path) -> Artifact:
    """A compiled library's coverage; the file itself is not opened."""
    rows = (
        OpPlacement("conv2d_q1", "conv2d", "integer", "", ("stem/conv2d", "stem/relu")),
        OpPlacement("reshape", "reshape", "integer", "", ("block/reshape",)),  # never called
        OpPlacement("add", "add", "float island", "", ("block/add",)),
        OpPlacement("add", "add", "float island", "", ("last/add",)),  # TVM gives equal operators one kernel
    )
    return Artifact("tvm", folder / "model.so", rows)


RESULT = {
    "runtime": "tvm 0.26.0", "threads": 2, "cores": [4, 5], "outputs": [], "load_ms": 12.5,
    "run_ms": [2.0, 2.1, 1.9, 2.0, 2.0],
    "events": [
        {"name": "conv2d_q1", "kind": "kernel", "ms": [1.2, 1.2, 1.2, 1.2, 1.2]},
        {"name": "dequantize", "kind": "kernel", "ms": [0.1, 0.1, 0.1, 0.1, 0.1]},
        {"name": "add", "kind": "kernel", "ms": [0.3, 0.3, 0.3, 0.3, 8.0]},
        {"name": "add", "kind": "kernel", "ms": [0.2, 0.2, 0.2, 0.2, 0.2]},
    ],
    "events_run_ms": [2.2, 2.2, 2.2, 2.2, 10.0],
}  # fmt: skip


def test_a_runner_s_result_becomes_the_same_report(tmp_path: Path) -> None:
    found = from_result(library(tmp_path), json.loads(json.dumps(RESULT)), "Some Phone", warmup=3)
    assert (found.device, found.backend, found.versions) == ("Some Phone", "tvm", {"tvm": "0.26.0"})
    assert (found.threads, found.warmup, found.total_ms.runs, found.total_ms.median) == (2, 3, 5, 2.0)
    assert [(row.name, row.layers, row.kind) for row in found.rows] == [
        ("conv2d_q1", ("stem/conv2d", "stem/relu"), "operator"),
        ("dequantize", (), "inserted"),
        ("add", ("block/add",), "operator"),
        ("add", ("last/add",), "operator"),
        ("unattributed", (), "unattributed"),
    ]
    assert [row.ms for row in found.rows] == pytest.approx([1.2, 0.1, 0.3, 0.2, 0.2])
    assert found.unattributed_ms == pytest.approx(0.2)


def test_a_runner_s_result_without_events_has_a_total_alone(tmp_path: Path) -> None:
    found = from_result(library(tmp_path), {**RESULT, "events": []}, "Some Phone", warmup=3)
    assert found.rows == () and found.method == "" and found.total_ms.median == 2.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"run_ms": []}, "timed nothing of model.so"),
        ({"run_ms": None}, "not what this version reads"),
        ({"events": [{"name": "x", "kind": "kernel"}]}, "not what this version reads"),
        (
            {"events": [{"name": "x", "kind": "kernel", "ms": [1.0]}, {"name": "y", "kind": "kernel", "ms": []}]},
            "damaged",
        ),
    ],
)
def test_a_damaged_result_is_a_sentence(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(EdgeqError, match=said):
        from_result(library(tmp_path), {**RESULT, **changes}, "Some Phone", warmup=3)
