"""Range method `sparsity`: max-min first, then the share of it with the least error in the outputs of the layers that read it.

Zhou et al. 2024, LiDAR-PTQ (arXiv 2401.15865), section 3.2: max-min keeps the rare large values that carry geometry, where
entropy and percentiles cut them off; a light grid search around its step size then finds the step with the least
reconstruction error. Ours: the bounds and number of candidates; that the error is that of the reading layer's output behind
its activation, since an error that the next layer's kernel averages away costs nothing; and that empty cells weigh at most as
much together as the occupied ones (edgeq.calib.objectives.mse.cell_mass), since they are most of the map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.fx import Interpreter, Node

from edgeq.calib.cache import Cache
from edgeq.calib.objectives.mse import cell_mass, relative_error
from edgeq.calib.ranges.affine import affine
from edgeq.calib.twins import Numbers, fake_quantize
from edgeq.graph.annotate import Group
from edgeq.graph.ops import WEIGHTED
from edgeq.spec import Progress, QParams

SHARES: Final = (0.5, 1.1)  # least and most share of the max-min range
CANDIDATES: Final = 13
FRAMES: Final = 8  # evenly spread over the calibration data


def search(numbers: Numbers, cache: Cache, shares: tuple[float, float], progress: Progress) -> None:
    """Replace the activation scales of `numbers`, max-min so far, by the best candidate between `shares` of them.

    cache: holds the float value of every placeholder. Tensors with fixed numbers keep them, and so does 1, the max-min
    range itself, where nothing is better.
    """
    tried = sorted({*np.linspace(*shares, CANDIDATES).tolist(), 1.0}, key=lambda s: abs(s - 1.0))
    runner = _Runner(numbers, tried)
    placeholders = [n for n in numbers.captured.module.graph.nodes if n.op == "placeholder"]
    chosen = np.unique(np.linspace(0, cache.frames - 1, FRAMES).round().astype(int)).tolist()
    for done, frame in enumerate(chosen, start=1):
        with torch.no_grad():
            runner.run(*(cache.read(f"float {n.name}", frame, frame + 1) for n in placeholders))
        progress("grid search", done, len(chosen))
    for root, errors in runner.errors.items():
        candidates = runner.candidates[root]
        numbers.resolved.activations[root] = candidates[int(np.argmin(errors))]  # the first, nearest to 1, of equals


class _Runner(Interpreter):
    """Runs the float graph; where a layer reads a quantized tensor, adds up what each candidate does to its output."""

    def __init__(self, numbers: Numbers, shares: list[float]) -> None:
        super().__init__(numbers.captured.module)
        tensors = numbers.annotation.tensors
        self.numbers = numbers
        self.candidates = {
            root: [_scaled(q, share, root, numbers) for share in shares]
            for root, q in numbers.resolved.activations.items()
            if root not in tensors.fixed
        }
        self.errors = {root: np.zeros(len(shares)) for root in self.candidates}
        self.readers: dict[Node, Group] = {g.node: g for g in numbers.annotation.groups if g.kind in WEIGHTED}
        read = {tensors.find(g.inputs[0]) for g in self.readers.values()}
        self.alone = {n for n in tensors.parent if tensors.find(n) not in read and n not in tensors.derived}

    def run_node(self, n: Node) -> Tensor:
        result: Tensor = super().run_node(n)
        find = self.numbers.annotation.tensors.find
        if n in self.alone and find(n) in self.candidates:  # no layer with weights reads it: the tensor itself counts
            mass = cell_mass(result, self.numbers.qparams(n).scale[0])
            self._add(find(n), lambda q: fake_quantize(result, q), result, mass)
        group = self.readers.get(n)
        if group is not None and find(group.inputs[0]) in self.candidates:
            source: Tensor = self.env[group.inputs[0]]
            answer = self._activated(group, result)
            mass = cell_mass(answer, self.numbers.qparams(group.output).scale[0])
            others = torch.fx.map_arg(n.args[1:], lambda a: self.env[a])

            def changed(q: QParams) -> Tensor:
                return self._activated(group, n.target(fake_quantize(source, q), *others, **n.kwargs))  # type: ignore[operator] # call_function

            self._add(find(group.inputs[0]), changed, answer, mass)
        return result

    def _add(self, root: Node, changed: Callable[[QParams], Tensor], wanted: Tensor, mass: Tensor) -> None:
        for i, qparams in enumerate(self.candidates[root]):
            error, power = relative_error(changed(qparams), wanted, mass)
            self.errors[root][i] += float(error) / max(float(power), torch.finfo(torch.float32).tiny)

    def _activated(self, group: Group, x: Tensor) -> Tensor:
        """`x` behind the group's fused activation."""
        if group.output is group.node:
            return x
        output = group.output
        found: Tensor = output.target(x, *output.args[1:], **output.kwargs)  # type: ignore[operator] # call_function
        return found


def _scaled(qparams: QParams, share: float, root: Node, numbers: Numbers) -> QParams:
    """The grid of `share` times the interval of `qparams`."""
    low, high = (qparams.scale[0] * (end - qparams.zero_point[0]) for end in (qparams.qmin, qparams.qmax))
    return qparams if share == 1.0 else affine(low * share, high * share, numbers.annotation.tensors.specs[root])
