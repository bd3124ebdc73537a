"""What resolved numbers must be for every operator that reads or writes them: checked before a program is made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.graph.annotate import Annotation, Group
from edgeq.graph.ops import WEIGHTED
from edgeq.spec import QParams

CONVERTS: Final = (2.0**-8, 2.0**7)  # own scale / shared scale that XNNPACK's int8 → int8 convert takes


class IllegalNumbers(RuntimeError):
    """Calibration chose numbers that an operator's kernel does not take: a fault in edgeq, not in the network."""


def check(
    annotation: Annotation,
    activations: Mapping[Node, QParams],
    scales: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> None:
    """Whether the numbers of `annotation` are what its operators demand. Arguments as the fields of `Resolved`.

    Raises:
        IllegalNumbers: they are not; names the layer.
    """
    for group in annotation.groups:
        if wrong := _wrong(group, annotation, activations, scales, weights):
            raise IllegalNumbers(f"layer {group.key!r}: {wrong}")


def _wrong(
    group: Group,
    annotation: Annotation,
    activations: Mapping[Node, QParams],
    scales: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
) -> str:
    """What is wrong with the numbers around one operator; empty where nothing is."""
    tensors = annotation.tensors
    out, *ins = (activations[tensors.find(n)] for n in (group.output, *group.inputs))
    for q in (out, *ins):
        if wrong := _wrong_grid(q):
            return wrong
    if group.support.fixed_output is not None and (out.scale[0], out.zero_point[0]) != group.support.fixed_output:
        return f"its kernel fixes its output at {group.support.fixed_output}, not {out.scale[0], out.zero_point[0]}"
    for node, q in zip(group.inputs, ins, strict=True):
        if (group.key, node) in annotation.apart:
            if not CONVERTS[0] < q.scale[0] / out.scale[0] < CONVERTS[1]:
                return f"scales {q.scale[0]} and {out.scale[0]} are further apart than kernels requantize"
        elif group.support.shared_scale and q != out:
            return f"its kernel wants one scale, not {q} for an input and {out} for its output"
    if group.key in scales and (wrong := _wrong_weights(group, scales[group.key], weights[group.key])):
        return wrong
    return _wrong_ratio(group, out, ins, scales.get(group.key))


def _wrong_grid(q: QParams) -> str:
    (scale,), (zero_point,) = q.scale, q.zero_point
    if not (math.isfinite(scale) and scale > 0 and float(torch.tensor(scale, dtype=torch.float32)) == scale):
        return f"scale {scale} is no positive float32"
    return "" if q.qmin <= zero_point <= q.qmax else f"zero point {zero_point} lies outside [{q.qmin}, {q.qmax}]"


def _wrong_weights(group: Group, scale: Tensor, weight: Tensor) -> str:
    spec = group.precision.weight
    assert spec is not None
    if weight.shape[WEIGHTED[group.kind][2]] != scale.numel() or weight.dtype != torch.int8:
        return f"{scale.numel()} scales for {weight.dtype} weights {tuple(weight.shape)}"
    if not bool((scale.isfinite() & (scale > 0)).all()):
        return "a weight's scale is not positive"
    low, high = int(weight.min()), int(weight.max())
    return "" if spec.qmin <= low and high <= spec.qmax else f"weights from {low} to {high} exceed {spec.bits} bits"


def _wrong_ratio(group: Group, out: QParams, ins: list[QParams], scale: Tensor | None) -> str:
    if group.support.ratio is None:
        return ""
    low, high = group.support.ratio
    if group.kind in ("add", "sub"):
        ratios = [q.scale[0] / out.scale[0] for q in ins]
    else:
        ratios = [math.prod(q.scale[0] for q in ins) * (1.0 if scale is None else float(scale.max())) / out.scale[0]]
    outside = [r for r in ratios if not low < r < high]
    return (
        f"input and output scales have the ratio {outside[0]:.3g}, its kernel takes {low:.3g} to {high:.3g}"
        if outside
        else ""
    )
