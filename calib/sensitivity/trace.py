"""Sensitivity `trace`: how much a change moves each layer's weights, by how sharply the loss bends along them on average.

Dong et al. 2020, HAWQ-V2 (arXiv 1911.03852): Ω = Tr(H) / n · ‖Q(W) − W‖² for each layer with n weights, added over layers; the
trace by Hutchinson's estimate, the mean of vᵀHv over vectors v of random signs. Ours: other vectors for each stack of frames, so
that frames and vectors average out together; the Hessian of a loss without labels (edgeq.calib.curvature) at float's weights,
whatever the base. Each layer has products of its own: one for all layers together, whose blocks between layers vanish in the mean
alone, was wrong by ten times the trace of ResNet-20's smaller layers after 64 vectors.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import torch

from edgeq.calib.curvature import Curvature, squares, weighted
from edgeq.calib.sensitivity import Kept, each, told
from edgeq.calib.study import Change, Study
from edgeq.graph.ordered import parted
from edgeq.spec import Progress

VECTORS: Final = 16  # of all frames together; one for each stack at least


def measure(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> list[float]:
    """Ω of the layers with weights that a change names, less the base's, in the loss's unit; 0 for activations alone.

    Raises:
        EdgeqError: see edgeq.calib.curvature.Curvature.bent.
    """
    layers = {layer.key: layer for layer in weighted(study)}
    found: dict[str, float] = {}

    def find(lines: Change) -> float:
        if not found:
            found.update(traces(study, progress, kept))
        moved = squares(study, layers, lines)
        return sum(found[key] / layers[key].count * square for key, square in moved.items())

    return each("trace", study, changes, find, progress, kept)


def traces(study: Study, progress: Progress, kept: Kept, vectors: int = VECTORS) -> Mapping[str, float]:
    """Tr(H) of each layer's block of the Hessian, by layer key."""
    layers = weighted(study)
    keys = [told("Hessian trace", study, vectors, layer.key) for layer in layers]
    if not all(key in kept for key in keys):
        curvature, totals = Curvature(study, layers), [0.0] * len(layers)
        each_stack = max(1, math.ceil(vectors / len(study.stacks)))
        for index, bent in enumerate(curvature.bent()):
            for draw in range(each_stack):
                generator = torch.Generator().manual_seed(zlib.crc32(f"trace {index} {draw}".encode()))
                signs = [torch.randint(0, 2, w.shape, generator=generator) * 2.0 - 1 for w in bent.weights]
                with parted():
                    for place, v in enumerate(signs):
                        totals[place] += float((v * bent.product(place, v)).double().sum()) / each_stack
            progress("Hessian trace", index + 1, len(study.stacks))
        kept.update(zip(keys, totals, strict=True))
    return {layer.key: kept[key] for layer, key in zip(layers, keys, strict=True)}
