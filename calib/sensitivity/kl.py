"""Sensitivity `kl`: how far the outputs' distribution moves from the float network's.

Cai et al. 2020, ZeroQ (arXiv 2001.00281), section 3.2, equation 3: the mean over frames of KL(M(θ; x) ‖ M(θ̃; x)), where θ̃ has one
layer quantized. Ours: what the change adds to the base's own, as other layers may be quantized as well. Ours too, where the
outputs name no classes: they are means of normal distributions whose deviation is the outputs' root mean square over all frames,
so that the divergence is half the squared error over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from edgeq.calib.likelihood import is_softened, names_classes
from edgeq.calib.sensitivity import Kept, each
from edgeq.calib.study import Change, Study, Variant
from edgeq.spec import Progress

LEAST: Final = torch.finfo(torch.float32).tiny  # of a probability


def measure(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> list[float]:
    """The rise of the divergence, in nats an example (a batch, where the outputs name no classes)."""
    base: list[float] = []

    def find(lines: Change) -> float:
        if not base:
            base.append(_divergence(study, study.variant))
        return _divergence(study, study.change(lines)) - base[0]

    return each("kl", study, changes, find, progress, kept)


def _divergence(study: Study, variant: Variant) -> float:
    if names_classes(study.captured):
        softened = is_softened(study.captured)
        parts = [_between(wanted[0], got[0], softened=softened) for wanted, got in study.answers(variant)]
        return float(torch.cat(parts).mean())
    error: dict[int, float] = {}
    power: dict[int, tuple[float, int]] = {}
    for wanted, got in study.answers(variant):
        for index, (y, x) in enumerate(zip(wanted, got, strict=True)):
            real, (before, count) = y.double(), power.get(index, (0.0, 0))
            error[index] = error.get(index, 0.0) + float((x.double() - real).square().sum())
            power[index] = before + float(real.square().sum()), count + y.numel()
    halves = [error[i] * count / (2 * square) for i, (square, count) in power.items() if square > 0]
    return sum(halves) / len(study.frames)


def _between(real: Tensor, made: Tensor, *, softened: bool) -> Tensor:
    """KL of each row of [N, C], float64."""
    p, q = (x.double().clamp(min=LEAST).log() if softened else x.double().log_softmax(1) for x in (real, made))
    return (p.exp() * (p - q)).sum(1)
