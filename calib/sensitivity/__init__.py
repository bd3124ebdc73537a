"""Sensitivities: how much a change of some layers' precision hurts. One file each; `measure` finds one by its name.

A file here has `measure(study, changes, progress, kept)`, which returns a number for each change: larger hurts more. Numbers of
one measure compare with each other, not with another's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, MutableMapping, Sequence
from importlib import import_module
from pkgutil import iter_modules

from edgeq.calib.study import Change, Study
from edgeq.spec import EdgeqError, Progress

Kept = MutableMapping[str, float]  # what an interrupted measurement has finished, by a hash of all that decides it


def names() -> list[str]:
    """The measures there are."""
    return sorted(found.name for found in iter_modules(__path__))


def measure(
    name: str,
    study: Study,
    changes: Sequence[Change],
    progress: Progress = lambda stage, done, total: None,
    kept: Kept | None = None,
) -> list[float]:
    """How much each change hurts by the measure called `name`, in the order of `changes`; 0: nothing changes.

    changes: lines of a plan each, of layers that change together, as {"layer1.0.conv1/conv2d": "w4a8"}; all other layers are as
    in the study's base: float ("one in") or, say, w8a8 ("one out"). kept: filled as numbers are found and read before, so that an
    interrupted measurement goes on; what the task's own functions compute is not among what its keys tell.

    Raises:
        EdgeqError: there is no such measure, it asks for what the study lacks, or the target refuses a change.
    """
    if name not in names():
        raise EdgeqError(f"unknown sensitivity {name!r}: use {', '.join(names())}")
    found: list[float] = import_module(f"{__name__}.{name}").measure(
        study, changes, progress, {} if kept is None else kept
    )
    return found


def each(
    name: str, study: Study, changes: Sequence[Change], find: Callable[[Change], float], progress: Progress, kept: Kept
) -> list[float]:
    """`find` of every change, or what is kept of it."""
    found = []
    for done, lines in enumerate(changes, start=1):
        key = told(name, study, sorted(study.base.items()), sorted(lines.items()))
        if key not in kept:
            kept[key] = finite(find(lines), name, lines)
        found.append(kept[key])
        progress(f"sensitivity {name}", done, len(changes))
    return found


def finite(value: float, name: str, lines: Change) -> float:
    """The value.

    Raises:
        EdgeqError: it is NaN or infinite.
    """
    if not math.isfinite(value):
        layer = next(iter(lines), "no layer")
        raise EdgeqError(
            f"sensitivity {name!r} of {layer!r} is {value}: the network's outputs hold NaN or Inf on the calibration batches, in "
            "float or with that layer changed; mend model(), or leave the layer as it is"
        )
    return value


def told(name: str, study: Study, *about: object) -> str:
    """The key under which a number is kept."""
    return hashlib.sha256(repr((name, study.key, about)).encode()).hexdigest()
