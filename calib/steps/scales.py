"""Step `scales`: a scale for every output channel, or group of one, of every layer's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from edgeq.calib.bench import Bench
from edgeq.calib.ranges.weights import scales


@dataclass(frozen=True, slots=True)
class Scales:
    """method: `minmax`, the largest weight at the grid's end, or `mse`, the least squared error of the weights."""

    needs: ClassVar[frozenset[str]] = frozenset()
    method: Literal["minmax", "mse"] = "minmax"

    def run(self, bench: Bench) -> None:
        """Scales of the weights, and activations' scales widened where kernels demand a ratio."""
        bench.scales = {x.key: scales(x.weight, x.axis, x.grid, self.method) for x in bench.layers.values()}
        bench.settle()
