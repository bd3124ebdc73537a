"""What an artefact cannot hold whose floats are float16, as Core ML's are: values beyond its end, scales that vanish in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from edgeq import backends
from edgeq.graph.capture import unlift
from edgeq.graph.kinds import weights_of
from edgeq.graph.package import QuantizedModel

LARGEST, SMALLEST = 65504.0, 2.0**-24  # finite values of float16
NAMED = 4  # tensors that the sentence names


def beyond_half(model: QuantizedModel, batch: Sequence[Tensor]) -> Iterator[str]:
    """A sentence where the target includes a runtime of float16 and tensors, or scales, of `model` have no float16.

    Calibrated tensors are judged by their ranges, those of float islands by their values on flat `batch`.
    """
    halves = [
        backends.RUNTIMES[name] for name in backends.target(model.plan.target).runtimes if backends.RUNTIMES[name].half
    ]
    if not halves:
        return
    title = " and ".join(runtime.title for runtime in halves)
    reach = {key: max(abs(q.step * (end - q.zero)) for end in (q.qmin, q.qmax)) for key, q in model.qparams.items()}
    reach.update(_islands(model, batch))
    large = [f"{key!r} reaches {value:.3g}" for key, value in reach.items() if value > LARGEST]
    if large:
        yield (
            f"{title}'s packages compute in float16, which ends at {LARGEST:.0f}: {_first(large)}, so their outputs will be of "
            f"no use there; give the network such values in another unit or scale, or leave {title} out"
        )
    small = [f"{key!r} has {q.step:.3g}" for key, q in model.qparams.items() if 0 < q.step < SMALLEST]
    for op in model.integers.ops.values():
        if op.weight is not None and op.weight_scale is not None:
            used = op.weight_scale[op.weight.movedim(weights_of(op.kind).axis, 0).flatten(1).any(1)]
            if used.numel() and used.min() < SMALLEST:
                small.append(f"the weight of {op.layer!r} has {float(used.min()):.3g}")
    if small:
        yield (
            f"{title}'s packages store scales in float16, where those below {SMALLEST:.2g} vanish: {_first(small)}; scale such "
            f"values up inside the network, or leave {title} out"
        )


def _islands(model: QuantizedModel, batch: Sequence[Tensor]) -> dict[str, float]:
    """Layer key → largest value it computes, of the layers that stay in float, and of the inputs."""
    found = {
        f"input {info.name}": float(x.abs().max())
        for info, x in zip(model.inputs, batch, strict=True)
        if x.is_floating_point() and x.numel() and info.qparams is None
    }
    if not model.islands:
        return found

    class Watched(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            key = model.twin_labels.get(n.name)
            if key in model.islands and isinstance(value, Tensor) and value.is_floating_point() and value.numel():
                seen = value[value.isfinite()]  # infinities of its own, as a mask's, are meant
                found[str(key)] = max(found.get(str(key), 0.0), float(seen.abs().max()) if seen.numel() else 0.0)
            return value

    with torch.no_grad():
        Watched(unlift(model.twin)).run(*batch)
    return found


def _first(clauses: Sequence[str]) -> str:
    rest = len(clauses) - NAMED
    return ", ".join(clauses[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
