"""The target without a runtime: every operator that edgeq knows in integers of every width, exact sums, one rounding."""

from __future__ import annotations

from edgeq.graph.kinds import KINDS, Kind, named
from edgeq.spec import ANY, ANY_LAYERS, OpSupport, Target


def _row(kind: Kind) -> OpSupport:
    return OpSupport(
        kind.name,
        pairs=ANY if kind.weights is None else ANY_LAYERS,
        fused=() if kind.role == "move" else named("clip"),
        shared_scale=kind.keeps_grid,
        limits=("one_group",) if kind.name == "conv_transpose2d" else (),
    )


TARGET = Target("simulated", (), "ideal", tuple(map(_row, KINDS.values())), floats=("fp32", "fp16"))
