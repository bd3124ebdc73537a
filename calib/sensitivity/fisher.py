"""Sensitivity `fisher`: how far a change of weights moves the outputs' distribution, weight by weight, to second order.

½ Σ F · (Q(W) − W)², where F is the diagonal of the Fisher information under the float network's own predictive distribution
(Martens 2020, arXiv 1412.1193, section 5), which is that of the Hessian of `kl`. Empirical Fisher information, as most papers
have it, takes labels in its place. Ours: no labels are drawn, but signs (edgeq.calib.curvature).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor

from edgeq.calib.curvature import Curvature, moved, weighted
from edgeq.calib.sensitivity import Kept, each
from edgeq.calib.study import Change, Study
from edgeq.graph.ordered import ordered
from edgeq.spec import Progress

DRAWS: Final = 16  # backward passes for each stack of frames


def measure(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> list[float]:
    """Of the layers with weights that a change names, less the base's, in nats; 0 for activations alone.

    Raises:
        EdgeqError: see edgeq.calib.curvature.Curvature.bent.
    """
    layers = {layer.key: layer for layer in weighted(study)}
    found: dict[str, Tensor] = {}

    def find(lines: Change) -> float:
        if not found:
            found.update(zip(layers, Curvature(study, list(layers.values())).squared(DRAWS, progress), strict=True))
        variant, total = study.change(lines), 0.0
        for key in lines:
            if key in layers:
                after, before = (moved(study, layers[key], v).square() for v in (variant, study.variant))
                with ordered():
                    total += float((found[key] * (after - before)).double().sum()) / 2
        return total

    return each("fisher", study, changes, find, progress, kept)
