"""Plans: which layer in which precision, by which steps, as a person may edit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """Intent: which layer in which precision. Saved as plan.json; a person may edit it and feed it back.

    layers: layer key (module path, operator and ordinal, `features.3.conv/conv2d`) to precision name. In a plan that is fed in, a
    key may be a pattern (`features.*`); a later line wins. default: precision of layers that no line names.
    recipe: its name. steps: what it does, each step's name and options; none where the name says it all.
    data: the source of made-up calibration batches, by name (`source`), with its options; None: the task's own data.
    """

    target: str
    recipe: str
    layers: dict[str, str]
    default: str | None = None
    steps: tuple[Mapping[str, Any], ...] = ()
    data: Mapping[str, Any] | None = None
