"""Plans: which layer in which precision, as a person may edit it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class QuantPlan:
    """Intent: which layer in which precision. Saved as plan.json; a person may edit it and feed it back.

    layers: layer key (module path, operator and ordinal, `features.3.conv/conv2d`) to precision name.
    """

    target: str
    recipe: str
    layers: dict[str, str]
