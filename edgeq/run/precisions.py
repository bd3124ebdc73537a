"""Whether a runtime computes what a plan asks for."""

from __future__ import annotations

from edgeq import backends
from edgeq.graph.ops import kind_of
from edgeq.graph.package import QuantizedModel
from edgeq.spec import EdgeqError, precision


def refuse_beyond(model: QuantizedModel, to: str) -> None:
    """Refuse what the runtime behind backend `to` cannot compute.

    Raises:
        EdgeqError: the plan asks for a precision that its kernels do not take.
    """
    engine = backends.backend(to).target
    kinds: dict[str, str | None] = {op.layer: op.kind for op in model.integers.ops.values() if op.kind != "requantize"}
    kinds |= {model.labels[n.name]: kind_of(n) for n in model.integers.floats if n.name in model.labels}
    for key, name in model.plan.layers.items():
        if key in model.islands or name == "fp32" or key not in kinds:
            continue
        if engine.takes(kinds[key], precision(name)) is None:
            row = engine.support(kinds[key])
            raise EdgeqError(
                f"{to} cannot compute layer {key!r} in {name}: its kernels take "
                f"{', '.join(row.precisions) if row else 'this operator in float only'}; "
                f"quantize with --target {to} or portable, or change the layer in plan.json"
            )
