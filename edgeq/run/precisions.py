"""Whether a runtime computes what a plan asks for."""

from __future__ import annotations

from edgeq import backends
from edgeq.graph.package import QuantizedModel
from edgeq.spec import EdgeqError


def refuse_beyond(model: QuantizedModel, to: str) -> None:
    """Refuse what the runtime behind backend `to` cannot compute.

    Raises:
        EdgeqError: the plan asks for a precision that its kernels do not take.
    """
    engine = backends.backend(to).target
    for key, name in model.plan.layers.items():
        if key in model.islands or name == "fp32":
            continue
        kind = key.rsplit("/", 1)[-1].split("#")[0]
        row = engine.support(kind)
        fine = (
            name in engine.floats
            or (name == "w8" and kind in engine.weight_only)
            or (row is not None and name in row.precisions)
        )
        if not fine:
            raise EdgeqError(
                f"{to} cannot compute layer {key!r} in {name}: its kernels take "
                f"{', '.join(row.precisions) if row else 'this operator in float only'}; "
                f"quantize with --target {to} or portable, or change the layer in plan.json"
            )
