"""Sensitivity `eigenvalue`: how much a change moves each layer's weights, by how sharply the loss bends along them at most.

Dong et al. 2019, HAWQ (arXiv 1905.03696): the largest eigenvalue λ of each layer's own block of the Hessian times ‖Q(W) − W‖², in
the order of which HAWQ trains layers; bits it chooses by λ / n alone, for n weights, which no change moves (`largest` gives λ).
Ours: λ by Lanczos' steps with the basis kept orthogonal (Golub and Van Loan, Matrix Computations, section 10.1), which end closer
than as many of power iteration; the Hessian of a loss without labels (edgeq.calib.curvature) at float's weights, whatever the
base, on fewer frames.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from edgeq.calib.curvature import Curvature, Layer, squares, weighted
from edgeq.calib.sensitivity import Kept, each, told
from edgeq.calib.study import Change, Study
from edgeq.graph.ordered import parted
from edgeq.spec import Progress

FRAMES: Final = 16
STEPS: Final = 16  # products for a layer at most
CLOSE: Final = 1e-2  # how little λ moves, relatively, in the last step
LEFT: Final = 1e-6  # of λ: a product that adds less to the directions so far adds rounding


def measure(study: Study, changes: Sequence[Change], progress: Progress, kept: Kept) -> list[float]:
    """λ‖Q(W) − W‖² of the layers with weights that a change names, less the base's, in the loss's unit; 0 for activations alone.

    Raises:
        EdgeqError: see edgeq.calib.curvature.Curvature.bent.
    """
    named = {key for lines in changes for key in lines}
    layers = {layer.key: layer for layer in weighted(study) if layer.key in named}
    found: dict[str, float] = {}

    def find(lines: Change) -> float:
        if not found:
            found.update(largest(study, list(layers.values()), progress, kept))
        return sum(found[key] * square for key, square in squares(study, layers, lines).items())

    return each("eigenvalue", study, changes, find, progress, kept)


def largest(
    study: Study, layers: Sequence[Layer], progress: Progress, kept: Kept, frames: int = FRAMES
) -> Mapping[str, float]:
    """λ of each layer's block of the Hessian, by layer key; all are iterated together, as long as one of them moves."""
    keys = {layer.key: told("Hessian eigenvalue", study, frames, layer.key) for layer in layers}
    missing = [layer for layer in layers if keys[layer.key] not in kept]
    if missing:
        found = _iterated(study, Curvature(study, missing), frames, progress)
        kept.update((keys[layer.key], value) for layer, value in zip(missing, found, strict=True))
    return {key: kept[name] for key, name in keys.items()}


@parted()
def _iterated(study: Study, curvature: Curvature, frames: int, progress: Progress) -> list[float]:
    spaces = [Krylov(_drawn(layer)) for layer in curvature.layers]
    for _ in range(STEPS):
        moving = [(place, space) for place, space in enumerate(spaces) if not space.done]
        if not moving:
            break
        products = {place: torch.zeros_like(space.basis[-1]) for place, space in moving}
        for bent in curvature.bent(_few(study, frames)):
            for place, space in moving:
                products[place] += bent.product(place, space.basis[-1])
        for place, space in moving:
            space.add(products[place])
        progress("Hessian eigenvalue", sum(space.done for space in spaces), len(spaces))
    return [space.value for space in spaces]


class Krylov:
    """What products with a symmetric matrix, one after the other, tell of its eigenvalues.

    basis: orthonormal directions, of which the last is to be multiplied next. value: the eigenvalue of largest magnitude so far.
    done: it moves no more, or there is nothing left to multiply.
    """

    def __init__(self, start: Tensor) -> None:
        self.basis, self.value, self.done = [start / start.norm()], 0.0, False
        self._diagonal: list[float] = []
        self._beside: list[float] = []

    def add(self, product: Tensor) -> None:
        """Take in the matrix times the last direction."""
        self._diagonal.append(float((self.basis[-1] * product).double().sum()))
        left = product
        for known in (*self.basis, *self.basis):  # twice, as float32 leaves something of them
            left = left - (known * left).sum() * known
        found = np.linalg.eigvalsh(np.diag(self._diagonal) + np.diag(self._beside, 1) + np.diag(self._beside, -1))
        value = float(max(found, key=abs))
        size = float(left.norm())
        self.done = abs(value - self.value) <= CLOSE * abs(value) or size <= LEFT * abs(value)
        self.value = value
        if not self.done:
            self._beside.append(size)
            self.basis.append(left / size)


def _few(study: Study, frames: int) -> list[int]:
    """The first stacks that hold so many frames."""
    before = [0, *itertools.accumulate(study.counts)]
    return [index for index in range(len(study.stacks)) if before[index] < frames]


def _drawn(layer: Layer) -> Tensor:
    return torch.randn(layer.shape, generator=torch.Generator().manual_seed(zlib.crc32(layer.key.encode())))
