"""Step `ranges`: one pass over the data, then an interval and with it scale and zero point for every quantized activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeq.calib.bench import Bench
from edgeq.calib.needs import SEEN
from edgeq.calib.ranges import Method, method


@dataclass(frozen=True, slots=True)
class Ranges:
    """method: a range method of edgeq.calib.ranges with its option, as `percentile:99.99`; of several, with commas between them,
    the one whose intervals cost the network's outputs least (edgeq.calib.choice).
    """

    needs: ClassVar[frozenset[str]] = frozenset({SEEN})
    method: str = "minmax"

    def __post_init__(self) -> None:
        """Raise EdgeqError where there is no such method."""
        self._methods()

    def run(self, bench: Bench) -> None:
        """Fill the observers and the activations."""
        bench.look(self._methods())

    def _methods(self) -> dict[str, Method]:
        return {name.strip(): method(name.strip()) for name in self.method.split(",")}
