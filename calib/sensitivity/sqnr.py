"""Sensitivity `sqnr`: power of the error at the outputs over the outputs' power, the mean over outputs.

As Zhao et al. 2024 (MixDQ, arXiv 2405.17873) rank layers by the SQNR that is left with one of them quantized. Ours: no decibels,
so that numbers of several layers add; and what the change adds to the base's own, as other layers may be quantized as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgeq.calib.likelihood import squared_size
from edgeq.calib.sensitivity import Kept, each
from edgeq.calib.study import Change, Study, Variant
from edgeq.spec import Progress


def measure(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> list[float]:
    """The rise of noise over signal, with no unit."""
    base: list[float] = []

    def find(lines: Change) -> float:
        if not base:
            base.append(_noise(study, study.variant))
        return _noise(study, study.change(lines)) - base[0]

    return each("sqnr", study, changes, find, progress, kept)


def _noise(study: Study, variant: Variant) -> float:
    noise: dict[int, float] = {}
    power: dict[int, float] = {}
    for wanted, got in study.answers(variant):
        for index, (y, x) in enumerate(zip(wanted, got, strict=True)):
            noise[index] = noise.get(index, 0.0) + squared_size(x.double() - y.double())
            power[index] = power.get(index, 0.0) + squared_size(y)
    ratios = [noise[index] / power[index] for index in power if power[index] > 0]
    return sum(ratios) / len(ratios) if ratios else 0.0
