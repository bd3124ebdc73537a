"""What a runtime does with the network's own layers: one denominator for every table, and what was inserted beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from edgeq import backends
from edgeq.graph.package import QuantizedModel
from edgeq.graph.work import Layer
from edgeq.spec import Artifact, OpPlacement, Status

WORST: tuple[Status, ...] = ("float island", "eligible", "integer")


@dataclass(frozen=True, slots=True)
class Counts:
    """Layers of the network by what they run as in one artefact, and the multiply-accumulates (macs) in them.

    The operators add up to the program's layers, the macs to theirs, whatever the runtime. inserted: kind → operators of
    the artefact that are no layer of the network: what a converter put there for a layout or a type.
    """

    integer_ops: int
    eligible_ops: int
    float_ops: int
    integer_macs: int
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
        ops["integer"], ops["eligible"], ops["float island"],
        work["integer"], work["eligible"], work["float island"],
        dict(beside.most_common()),
    )  # fmt: skip


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
