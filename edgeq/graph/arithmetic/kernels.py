"""What a kernel set is to the simulation: how it computes, and where floats enter its integers and leave them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor

from edgeq.graph import coded
from edgeq.graph.integer import IntegerOp
from edgeq.spec import QParams


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _as_they_are(target: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return args


@dataclass(frozen=True, slots=True)
class Kernels:
    """One runtime's kernel set; each module here that is one has it as `KERNELS`.

    compute: an operator's output integers from its inputs', torch's layout. missing: kinds without an integer kernel, islands
    although they stand between integers. limited: kind → the name of what its kernel cannot take (edgeq.graph.limits).
    quantize, widen: of what a float island gives and reads. constant, arguments: those of a float island, as they are stored.
    """

    compute: Callable[[IntegerOp, Sequence[Tensor]], Tensor]
    missing: Set[str] = frozenset()
    limited: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    quantize: Callable[[Tensor, QParams], Tensor] = coded.quantize
    widen: Callable[[Tensor, QParams], Tensor] = coded.dequantize
    constant: Callable[[Tensor], Tensor] = _same
    arguments: Callable[[Any, tuple[Any, ...]], tuple[Any, ...]] = _as_they_are
