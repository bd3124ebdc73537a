"""Sensitivity `kl`: how far the outputs' distribution moves from the float network's.

Cai et al. 2020, ZeroQ (arXiv 2001.00281): the mean over frames of KL(M(θ; x) ‖ M(θ̃; x)), where θ̃ has one layer
quantized. Ours: what the change adds to the base's own, as other layers may be quantized as well. Ours too, where the outputs
name no classes: edgeq.calib.likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.calib.likelihood import divergence
from edgeq.calib.sensitivity import Kept, each
from edgeq.calib.study import Change, Study, Variant
from edgeq.spec import Progress


def measure(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> list[float]:
    """The rise of the divergence, in nats an example (a batch, where the outputs name no classes)."""
    base: list[float] = []

    def of(variant: Variant) -> float:
        return divergence(study.captured, study.answers(variant), len(study.frames))

    def find(lines: Change) -> float:
        if not base:
            base.append(of(study.variant))
        return of(study.change(lines)) - base[0]

    return each("kl", study, changes, find, progress, kept)
