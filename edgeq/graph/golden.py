"""Inputs that anybody may see: calibration data may be private, and a saved model has something to run on nevertheless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.graph.capture import Captured
from edgeq.graph.ops import kind_of, table
from edgeq.spec import QParams


def golden(captured: Captured, of: Mapping[Node, QParams], placeholders: Sequence[Node]) -> tuple[Tensor, ...]:
    """Synthetic inputs from a fixed seed: uniform over the calibrated range, or over the example's integers.

    A table by which rows are gathered is the example's, shuffled: as many empty places, and no row out of range.
    """
    generator = torch.Generator().manual_seed(0)
    tables = {table(n) for n in captured.module.graph.nodes if kind_of(n) == "gather"}
    made = []
    for node, example in zip(placeholders, captured.example, strict=True):
        if node in tables:
            order = torch.randperm(example.numel(), generator=generator)
            made.append(example.flatten()[order].view(example.shape))
            continue
        if not example.is_floating_point():
            top = max(int(example.max()), 1)
            made.append(torch.randint(0, top + 1, example.shape, generator=generator).to(example.dtype))
            continue
        q = of.get(node)
        low, high = (-1.0, 1.0) if q is None else tuple(q.step * (e - q.zero) for e in (q.qmin, q.qmax))
        made.append(torch.rand(example.shape, generator=generator) * (high - low) + low)
    return tuple(made)
