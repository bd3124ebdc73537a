"""Sensitivity `lrp`: how far a change moves each layer's weights, relatively, by how much of the answer goes through the layer.

Ranjan and Savakis 2024, LRP-QViT (arXiv 2401.11243), score layers by layer-wise relevance propagation: the sum of |R| of each
layer, of all layers' together. Relevances here are those of rule ε with ε = 0, for the class that is answered, which are values
times gradients (Ancona et al. 2018, arXiv 1711.06104, proposition 1, for ReLU networks): one backward pass. Ours: the score
counts ‖Q(W) − W‖² / ‖W‖², as the paper's alone says nothing of a precision.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.calib.curvature import Curvature, squares, weighted
from edgeq.calib.likelihood import squared_size
from edgeq.calib.sensitivity import Kept, each
from edgeq.calib.study import Change, Study
from edgeq.graph.ops import constant
from edgeq.spec import Progress


def measure(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> list[float]:
    """Of the layers with weights that a change names, less the base's, with no unit; 0 for activations alone.

    Raises:
        EdgeqError: see edgeq.calib.curvature.Curvature.bent.
    """
    layers = {layer.key: layer for layer in weighted(study)}
    found: dict[str, float] = {}

    def find(lines: Change) -> float:
        if not found:
            scores = Curvature(study, list(layers.values())).relevance(progress)
            found.update((key, score / (sum(scores) or 1.0)) for key, score in zip(layers, scores, strict=True))
        total = 0.0
        for key, square in squares(study, layers, lines).items():
            size = squared_size(constant(study.captured.module, layers[key].held))
            total += found[key] * square / size if size > 0 else 0.0
        return total

    return each("lrp", study, changes, find, progress, kept)
