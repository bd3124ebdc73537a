"""What a runtime does with the network's own layers: one denominator for every table, and what was inserted beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from edgeq import backends
from edgeq.graph.integer import members
from edgeq.graph.package import QuantizedModel
from edgeq.graph.work import Layer
from edgeq.spec import Artifact, OpPlacement, Status, Target

WORST: tuple[Status, ...] = ("float island", "eligible", "table", "integer")
TABLE = "in float between two integers, so that a table of its inputs is all of it"


@dataclass(frozen=True, slots=True)
class Counts:
    """Layers of the network by what they run as in one artefact, and the multiply-accumulates (macs) in them.

    The operators add up to the program's layers, the macs to theirs, whatever the runtime. inserted: kind → operators of
    the artefact that are no layer of the network: what a converter put there for a layout or a type.
    """

    integer_ops: int
    table_ops: int
    eligible_ops: int
    float_ops: int
    integer_macs: int
    table_macs: int
    eligible_macs: int
    float_macs: int
    inserted: dict[str, int]


def counts(artifact: Artifact, model: QuantizedModel) -> Counts:
    """How `artifact` runs the layers of `model`.

    A layer of several operators is what the worst of them is, and never more than in the program; one that no operator is
    left of costs nothing, and is what the program says.
    """
    rows: dict[str, list[Status]] = {}
    for row in artifact.coverage:
        for key in () if inserted(row) else row.layers:
            rows.setdefault(key, []).append(row.status)
    ops, work = Counter[Status](), Counter[Status]()
    for layer in model.layers:
        status = _status(layer, {s for key in layer.keys for s in rows.get(key, ())}, artifact.backend)
        ops[status] += 1
        work[status] += layer.macs
    beside = Counter(row.kind for row in artifact.coverage if inserted(row))
    return Counts(
        ops["integer"], ops["table"], ops["eligible"], ops["float island"],
        work["integer"], work["table"], work["eligible"], work["float island"],
        dict(beside.most_common()),
    )  # fmt: skip


def tabled(artifact: Artifact, model: QuantizedModel, target: Target) -> Artifact:
    """`artifact` with the rows of its curves as `table` where its runtime computes them in float: the float operators that
    belong to such layers alone, and what converts to float and back for them."""
    ops = model.integers.ops.values()
    kinds = {op.kind: target.support(op.kind) for op in ops}
    curves = {op.name for op in ops if (row := kinds[op.kind]) is not None and row.status == "table"}
    keys = {key for name in curves for key in members(model.integers, model.labels).get(name, ())}

    def judged(row: OpPlacement) -> OpPlacement:
        own = row.status != "integer" and bool(row.layers) and keys >= {*row.layers}
        return replace(row, status="table", reason=TABLE if not row.inserted else row.reason) if own else row

    return replace(artifact, coverage=tuple(map(judged, artifact.coverage)))


def inserted(row: OpPlacement) -> bool:
    """Whether an operator of an artefact is no layer of the network."""
    return row.inserted or not row.layers


def _status(layer: Layer, seen: Iterable[Status], backend: str) -> Status:
    if not layer.kind:
        return "float island"
    support = backends.backend(backend).target.support(layer.kind)
    found = {*seen} or {support.status if support is not None else "float island"}
    return next(status for status in WORST if status in found)


def coverage_json(artifact: Artifact, model: QuantizedModel) -> dict[str, Any]:
    """`counts` as plain data."""
    return asdict(counts(artifact, model))


def program_counts(model: QuantizedModel) -> dict[str, dict[str, int]]:
    """The layers of the QDQ program, and their macs, by what they compute in; no runtime is asked."""
    return {
        what: {
            "integer": sum(value for layer, value in values if layer.kind),
            "float": sum(value for layer, value in values if not layer.kind),
        }
        for what, values in (
            ("operators", [(layer, 1) for layer in model.layers]),
            ("macs", [(layer, layer.macs) for layer in model.layers]),
        )
    }
