"""The default target: what every runtime computes as integers, under every runtime's constraints at once."""

from __future__ import annotations

from edgeq.spec import OpSupport, Target


def intersection(targets: tuple[Target, ...]) -> Target:
    """One target whose programs every one of `targets` takes as they are.

    An operator is in it when all have it; it fuses what all fuse, shares scales where any must, and keeps the fixed
    output scale of whichever runtime insists on one.
    """
    first, *others = targets
    rows = []
    for row in first.ops:
        twins = [t.support(row.kind) for t in others]
        if all(twin is not None for twin in twins):
            rows.append(_merge(row, [twin for twin in twins if twin is not None]))
    return Target(
        name="portable",
        runtimes=tuple(r for t in targets for r in t.runtimes),
        arithmetic="xnnpack",
        ops=tuple(rows),
        floats=tuple(f for f in first.floats if all(f in t.floats for t in others)),
    )


def _merge(row: OpSupport, twins: list[OpSupport]) -> OpSupport:
    every = [row, *twins]
    limits = tuple(dict.fromkeys(name for r in every for name in r.limits))
    return OpSupport(
        row.kind,
        "integer",
        tuple(p for p in row.pairs if all(p in r.pairs for r in twins)),
        tuple(f for f in row.fused if all(f in r.fused for r in twins)),
        any(r.shared_scale for r in every),
        next((r.fixed_output for r in every if r.fixed_output), None),
        "; ".join(dict.fromkeys(r.constraint for r in every if r.constraint)),
        limits,
        _overlap([r.ratio for r in every if r.ratio is not None]),
    )


def _overlap(intervals: list[tuple[float, float]]) -> tuple[float, float] | None:
    """The interval that lies in all of `intervals`; None where there are none."""
    return (max(low for low, _ in intervals), min(high for _, high in intervals)) if intervals else None
