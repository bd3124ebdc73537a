"""Core ML's compute plan as rows, from made-up plans: there is no Mac here."""

from __future__ import annotations

import math

import pytest

from edgeq.backends.coreml.compute_plan import METHOD, Planned, rows_of
from edgeq.backends.timing import report
from edgeq.spec import OpPlacement

COVERAGE = (
    OpPlacement("conv_1", "conv", "eligible", "", ("stem/conv2d",)),
    OpPlacement("softmax_1", "softmax", "float island", "float", ("softmax",)),
)
PLAN = [
    Planned("w", "", None),
    Planned("cast_0", "CPU", 0.05),
    Planned("conv_1", "Neural Engine", 0.6),
    Planned("softmax_1", "GPU", 0.25),
    Planned("free", "CPU", 0.0),
]


def test_shares_of_the_total_become_rows_that_add_up() -> None:
    rows = rows_of(PLAN, COVERAGE, 8.0)
    assert [(r.name, r.kind, r.device, r.layers) for r in rows] == [
        ("cast_0", "inserted", "CPU", ()),
        ("conv_1", "operator", "Neural Engine", ("stem/conv2d",)),
        ("softmax_1", "operator", "GPU", ("softmax",)),
    ]
    assert [r.ms for r in rows] == pytest.approx([0.4, 4.8, 2.0])
    made = report([7.9, 8.0, 8.1], rows, backend="coreml", versions={}, threads=1, warmup=1, method=METHOD)
    assert made.unattributed_ms == pytest.approx(0.8) and made.row_scale == 1
    assert math.fsum(r.ms for r in made.rows) == pytest.approx(8.0)
    assert made.method == "compute plan" and made.rows[1].device == "Neural Engine"


def test_shares_beyond_the_whole_are_scaled_and_nonsense_is_left_out() -> None:
    plan = [
        Planned("conv_1", "GPU", 1.5),
        Planned("softmax_1", "CPU", 0.5),
        Planned("x", "CPU", math.nan),
        Planned("y", "", -1),
    ]
    assert [r.ms for r in rows_of(plan, COVERAGE, 10.0)] == pytest.approx([7.5, 2.5])
    assert rows_of([], COVERAGE, 10.0) == ()
