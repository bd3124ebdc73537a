"""Does an artefact hold the program's numbers? Its constants, as each runtime's file has them, beside those of the program.

A runtime may lay weights out as it likes, pad them or split them by phases; their values stay. So a layer's weights are
found by how often each value occurs in them, and scales by what they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgeq.graph.arithmetic import coreml
from edgeq.graph.integer import DEQUANTIZE, QUANTIZE, IntegerOp, IntegerProgram, tensor_qparams
from edgeq.spec import Target

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """The integer constants of a file.

    weights: int8. ratios: runs of numbers with a layer's weight scales in them, or what the runtime made of these.
    biases: int32. activations: (scale, zero point) of each quantized value; either is None where the file has none as data.
    half: its scales are float16. folded: its ratios are weight scales times the input's over the output's.
    """

    weights: tuple[Array, ...]
    ratios: tuple[Array, ...]
    biases: tuple[Array, ...] | None = None
    activations: frozenset[tuple[float, int]] | None = None
    half: bool = False
    folded: bool = False


def differences(stored: Stored, program: IntegerProgram, target: Target) -> Iterator[str]:
    """A few words for each layer whose numbers a file does not hold. target: of the runtime, whose kernels may fix scales."""
    half = stored.half
    weighted = [op for op in program.ops.values() if op.weight is not None and op.weight_scale is not None]
    tables = [op.entries.numpy() for op in program.ops.values() if op.entries is not None and len(op.entries) == 256]
    expected = [_occurrences(w) for w in (*map(_weight, weighted), *tables)]
    weights = _Found([_occurrences(w) for w in stored.weights], expected)
    runs = [_rounded(ratio, half) for ratio in stored.ratios]
    scales = _Found([run.tobytes() for run in runs], [_rounded(_scale(op), half).tobytes() for op in weighted])
    biases = None if stored.biases is None else [b.reshape(-1) for b in stored.biases]
    for op in weighted:
        if _occurrences(_weight(op)) not in weights:
            yield f"weights of {op.layer} differ"
        scale = _scale(op)
        if stored.folded:
            ratio = (op.input_qparams[0].step * scale / op.output_qparams.step).astype(np.float32)
            held = any(len(run) >= len(ratio) and bool(np.isin(ratio, run).all()) for run in runs)
        else:
            held = _rounded(scale, half).tobytes() in scales
        if not held:
            yield f"weight scales of {op.layer} differ"
        if biases is not None and op.bias is not None:
            wanted = op.bias.numpy()
            if not any(_alike(b, wanted) for b in biases):
                yield f"bias of {op.layer} differs"
    if stored.activations is not None:
        fixed = {row.fixed_output for row in target.ops if row.fixed_output is not None}
        known = _activations(program, half) | {(_single(scale, half), zero) for scale, zero in fixed}
        for scale_, zero in sorted({(_single(s, half), z) for s, z in stored.activations} - known):
            yield f"scale {scale_:.9g} and zero point {zero} are no tensor's"


class _Found:
    """Which of the program's constants a file has. Of equal ones a runtime may keep one; where it also holds some that are
    nobody's, each has to be there."""

    def __init__(self, held: Sequence[bytes], wanted: Sequence[bytes]) -> None:
        self.held, self.wanted = Counter(held), Counter(wanted)
        self.strange = bool(self.held - self.wanted)

    def __contains__(self, constant: bytes) -> bool:
        return self.held[constant] >= (self.wanted[constant] if self.strange else 1)


def _alike(bias: Array, wanted: Array) -> bool:
    """Equal; beyond 2^21 as far as float32 tells, in which ExecuTorch divides a bias by its scale."""
    apart = np.abs(bias.astype(np.int64) - wanted) if bias.shape == wanted.shape else np.asarray(np.inf)
    return bool((apart <= np.floor(np.abs(wanted) * 2.0**-21)).all())


def _weight(op: IntegerOp) -> Array:
    assert op.weight is not None
    return op.weight.numpy()


def _scale(op: IntegerOp) -> Array:
    assert op.weight_scale is not None
    return op.weight_scale.numpy()


def _activations(program: IntegerProgram, half: bool) -> set[tuple[float, int]]:
    """(scale, zero point) of every quantized value of the program."""
    nodes = [n for n in program.module.graph.nodes if n.target in (QUANTIZE, DEQUANTIZE)]
    return {(_single(q.step, half), q.zero) for q in map(tensor_qparams, nodes)}


def _occurrences(weight: Array) -> bytes:
    """How often each value but 0 occurs, with which kernels pad."""
    counts = np.bincount(weight.reshape(-1).astype(np.int64) + 128, minlength=256)
    counts[128] = 0
    return counts.tobytes()


def _rounded(values: Array, half: bool) -> Array:
    values = values.reshape(-1).astype(np.float32)
    return coreml.stored(torch.from_numpy(values), half=True).numpy() if half else values


def _single(scale: float, half: bool) -> float:
    return float(coreml.stored(scale, half))
