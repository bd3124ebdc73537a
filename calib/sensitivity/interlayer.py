"""Sensitivity `interlayer`: what a change hurts by itself, and what it adds to the harm of each other change.

Schaefer et al. 2023, "Augmenting Hessians with Inter-Layer Dependencies for Mixed-Precision Post-Training Quantization" (arXiv
2306.04879): layers are quantized in pairs, and what a pair loses more than its two layers alone is added to Hessian information.
Ours: both are divergences as in `kl`, so that they have one unit and need no normalising; each of the two takes half of a pair's
surplus, so that all numbers add up to what all changes together hurt, as far as pairs tell (`surplus` gives the pairs).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from edgeq.calib.likelihood import divergence
from edgeq.calib.sensitivity import Kept, finite, told
from edgeq.calib.study import Change, Study
from edgeq.spec import Progress


def measure(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> list[float]:
    """The rise of the divergence by a change, and half of what each pair with it rises more than both alone; in nats."""
    found, pairs = _alone(study, changes, progress, kept), surplus(study, changes, progress, kept)
    for (i, j), more in pairs.items():
        found[i] += more / 2
        found[j] += more / 2
    return found


def surplus(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> Mapping[tuple[int, int], float]:
    """(i, j), i < j → how much more the divergence rises by changes i and j together than by each alone, in nats.

    A layer that both name is as j says.
    """
    alone = _alone(study, changes, progress, kept)
    pairs = list(itertools.combinations(range(len(changes)), 2))
    found = {}
    for done, (i, j) in enumerate(pairs, start=1):
        found[i, j] = _rise(study, {**changes[i], **changes[j]}, kept) - alone[i] - alone[j]
        progress("sensitivity interlayer, pairs", done, len(pairs))
    return found


def _alone(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> list[float]:
    found = []
    for done, lines in enumerate(changes, start=1):
        found.append(_rise(study, lines, kept))
        progress("sensitivity interlayer, alone", done, len(changes))
    return found


def _rise(study: Study, lines: Change, kept: Kept) -> float:
    after, before = ({**study.base, **more} for more in (lines, {}))
    return _divergence(study, after, kept) - _divergence(study, before, kept)


def _divergence(study: Study, plan: Change, kept: Kept) -> float:
    key = told("divergence", study, sorted(plan.items()))
    if key not in kept:
        found = divergence(study.captured, study.answers(study.change(plan)), len(study.frames))
        kept[key] = finite(found, "interlayer", plan)
    return kept[key]
