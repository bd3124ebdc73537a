"""Ratios of scales that a target's kernels insist on."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.graph.annotate import Annotation
from edgeq.graph.ops import value
from edgeq.spec import QParams


def keep_ratios(annotation: Annotation, activations: dict[str, QParams], scales: dict[str, Tensor]) -> None:
    """Widen activation scales until every operator's ratio of input to output scale is one its kernels take.

    Only scales so far apart that the finer one was beyond the coarser one's reach anyway are changed. That holds of a mean on
    every target: of N integers it is a multiple of 1/N of their step, and a finer scale would hold its rounding alone.
    """
    tensors = annotation.tensors

    def widen(node: Node, least: float) -> bool:
        root = tensors.find(node)
        if activations[root.name].step >= least or root in tensors.fixed:
            return False
        wider = float(torch.tensor(least * (1 + 2**-20), dtype=torch.float32))
        activations[root.name] = dataclasses.replace(activations[root.name], scale=(wider,))
        return True

    changed = True
    while changed:
        changed = False
        for group in annotation.groups:
            if group.kind == "mean":
                step = activations[tensors.key(group.inputs[0])].step
                changed |= widen(group.output, step * value(group.node).numel() / value(group.inputs[0]).numel())
            if group.support.ratio is None:
                continue
            low, high = group.support.ratio
            ins = [activations[tensors.key(node)].step for node in group.inputs]
            out = activations[tensors.key(group.output)].step
            if group.kind in ("add", "sub"):
                changed |= widen(group.output, max(ins) / high)
                changed |= any([widen(node, out * low) for node in group.inputs])
            else:
                factor = float(scales[group.key].max()) if group.key in scales else 1.0
                changed |= widen(group.output, math.prod(ins) * factor / high)
