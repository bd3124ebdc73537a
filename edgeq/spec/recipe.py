"""Recipes: a published method as a sequence of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Step(Protocol):
    """A frozen dataclass of edgeq.calib.steps, whose fields are its options."""

    @property
    def needs(self) -> frozenset[str]:
        """What it asks for beside the network: `data`, `positives`."""

    def run(self, bench: Any) -> Any:
        """Do it on an edgeq.calib.bench.Bench; returns what goes from layer to layer with neighbouring steps, or None."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A published method: steps in their order, each with its options. source: the paper that says so."""

    name: str
    summary: str
    source: str
    steps: tuple[Step, ...]
