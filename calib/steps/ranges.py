"""Step `ranges`: one pass over the data, then an interval and with it scale and zero point for every quantized activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeq.calib.bench import Bench
from edgeq.calib.needs import SEEN
from edgeq.calib.ranges import method


@dataclass(frozen=True, slots=True)
class Ranges:
    """method: a range method of edgeq.calib.ranges with its option, as `percentile:99.99`."""

    needs: ClassVar[frozenset[str]] = frozenset({SEEN})
    method: str = "minmax"

    def __post_init__(self) -> None:
        """Raise EdgeqError where there is no such method."""
        method(self.method)

    def run(self, bench: Bench) -> None:
        """Fill the observers and the activations."""
        bench.look(method(self.method))
