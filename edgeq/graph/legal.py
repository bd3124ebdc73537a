"""What resolved numbers must be for every operator that reads or writes them: checked before a program is made of them."""

from __future__ import annotations

import math
from typing import Final

from torch import Tensor

from edgeq.graph.annotate import Annotation, Group
from edgeq.graph.coded import Coded
from edgeq.graph.kinds import weights_of
from edgeq.graph.numbers import Resolved, wrong_grid
from edgeq.spec import QParams

CONVERTS: Final = (2.0**-8, 2.0**7)  # own scale / shared scale that XNNPACK's int8 → int8 convert takes


class IllegalNumbers(RuntimeError):
    """Calibration chose numbers that an operator's kernel does not take: a fault in edgeq, not in the network."""


def check(annotation: Annotation, resolved: Resolved) -> None:
    """Whether the numbers of `annotation` are what its operators demand.

    Raises:
        IllegalNumbers: they are not; names the layer.
    """
    for group in annotation.groups:
        if wrong := _wrong(group, annotation, resolved):
            raise IllegalNumbers(f"layer {group.key!r}: {wrong}")


def _wrong(group: Group, annotation: Annotation, resolved: Resolved) -> str:
    """What is wrong with the numbers around one operator; empty where nothing is."""
    tensors = annotation.tensors
    out, *ins = (resolved.activations[tensors.key(n)] for n in (group.output, *group.inputs))
    for q in (out, *ins):
        if wrong := wrong_grid(q):
            return wrong
    if group.support.fixed_output is not None and (out.step, out.zero) != group.support.fixed_output:
        return f"its kernel fixes its output at {group.support.fixed_output}, not {out.step, out.zero}"
    for node, q in zip(group.inputs, ins, strict=True):
        if (group.key, node) in annotation.apart:
            if not CONVERTS[0] < q.step / out.step < CONVERTS[1]:
                return f"scales {q.step} and {out.step} are further apart than kernels requantize"
        elif group.support.shared_scale and q != out:
            return f"its kernel wants one scale, not {q} for an input and {out} for its output"
    weight = resolved.weights.get(group.key)
    if weight is not None and (wrong := _wrong_weights(group, weight)):
        return wrong
    return _wrong_ratio(group, out, ins, None if weight is None else weight.scale)


def _wrong_weights(group: Group, weight: Coded) -> str:
    wanted, axis = group.precision.weight, weights_of(group.kind).axis
    if weight.grid != wanted:
        return f"weights on the grid {weight.grid} instead of {wanted}"
    if weight.scale.shape[axis] != weight.codes.shape[axis] or weight.scale.numel() != weight.scale.shape[axis]:
        return f"scales of shape {tuple(weight.scale.shape)} for weights {tuple(weight.codes.shape)}"
    return "" if bool((weight.scale.isfinite() & (weight.scale > 0)).all()) else "a weight's scale is not positive"


def _wrong_ratio(group: Group, out: QParams, ins: list[QParams], scale: Tensor | None) -> str:
    if group.support.ratio is None:
        return ""
    low, high = group.support.ratio
    if group.kind in ("add", "sub"):
        ratios = [q.step / out.step for q in ins]
    else:
        ratios = [math.prod(q.step for q in ins) * (1.0 if scale is None else float(scale.max())) / out.step]
    outside = [r for r in ratios if not low < r < high]
    return (
        f"input and output scales have the ratio {outside[0]:.3g}, its kernel takes {low:.3g} to {high:.3g}"
        if outside
        else ""
    )
