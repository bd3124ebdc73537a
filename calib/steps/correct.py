"""Step `correct`, bias correction: the error that most of a layer's output cells have in common goes back into its bias.

Nagel et al. 2019 (Data-Free Quantization, arXiv 1906.04721, section 4.2 and appendix D) subtract each channel's mean error,
measured layer by layer behind the corrected layers before. Ours is the median: in a sparse map most cells are empty and have
one value per channel, whose rounding error is the same in all of them and adds up in later sums where random errors would
cancel. The median is that error exactly; the mean mixes it with the errors of occupied cells. Where nothing is empty, median
and mean agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.bench import Bench
from edgeq.calib.floats import Floats
from edgeq.calib.needs import DATA
from edgeq.calib.spans import Span
from edgeq.calib.twins import Twins
from edgeq.calib.walk import Extent, Walk
from edgeq.calib.workspace import Part
from edgeq.graph.kinds import weights_of
from edgeq.graph.ops import constant, kind_of, node_arg

CELLS: Final = 1 << 16  # output cells of a layer that are looked at
VALUES: Final = 1 << 24  # and no more frames than those whose largest tensor has so many values together, but two


@dataclass(frozen=True, slots=True)
class Correct:
    """Every layer with a bias is looked at behind the corrected ones before it."""

    needs: ClassVar[frozenset[str]] = frozenset({DATA})
    learns: ClassVar[bool] = False
    extent: ClassVar[Extent] = "layer"
    activations: ClassVar[bool] = False

    def run(self, bench: Bench) -> Correct:
        """All is done on the walk."""
        return self

    def frames(self, floats: Floats) -> int:
        """As many as show a layer's common error."""
        return frames(floats)

    def layer(self, walk: Walk, node: Node) -> None:
        """Correct one bias."""
        correct_layer(walk.twins, node)

    def close(self, walk: Walk, span: Span, part: Part) -> None:
        """Nothing is left to do."""


def frames(floats: Floats) -> int:
    """How many frames show a layer's common error."""
    return max(2, floats.fits(VALUES))


def correct_layer(twins: Twins, node: Node) -> None:
    """Take the common error of a layer, whose inputs are computed on both sides, out of its bias, if it has one."""
    numbers = twins.numbers
    key, bias = numbers.weighted[node][0], node_arg(node, weights_of(kind_of(node)).bias, None)
    if isinstance(bias, Node):
        known = numbers.resolved.biases.get(key, constant(numbers.captured.module, bias))
        numbers.resolved.biases[key] = known - common_error(twins, node)


def common_error(twins: Twins, node: Node) -> Tensor:
    """Median over sampled output cells of what the quantized layer answers less what the float one does, float32 [C]."""
    source, found = node.args[0], []
    assert isinstance(source, Node)
    axis = -1 if kind_of(node) == "linear" else 1
    with torch.no_grad():
        some = min(frames(twins.floats), twins.frames)
        for start, stop in twins.chunks():
            if start >= some:
                break
            real, seen = twins.real(source, start, stop), twins.seen(source, start, stop)
            wanted = twins.floats.node(node, {source: real}.__getitem__)
            error = twins.numbers.unrounded(twins.floats, node, {source: seen}.__getitem__) - wanted
            cells = error.movedim(axis, -1).reshape(-1, error.shape[axis])
            step = -(-len(cells) * some // (CELLS * (stop - start)))
            found.append(cells[:: max(1, step | 1)])  # an odd step, so that no column of a map is left out
    return torch.cat(found).median(0).values
