"""The operator of a QDQ program behind weights that quantized_decomposed has none for: groups, tables, other axes."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeq.graph.coded import decode

SCHEMA = "(Tensor codes, Tensor scale, Tensor? zero, Tensor? table, int qmin, int qmax) -> Tensor"


def _dequantize(
    codes: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, qmin: int, qmax: int
) -> Tensor:
    """Codes as the float32 that they stand for; scale and zero of their rank, each size a divisor of theirs (coded.Coded)."""
    return decode(codes, scale, zero, table, qmin)


def _shape(codes: Tensor, scale: Tensor, zero: Tensor | None, table: Tensor | None, qmin: int, qmax: int) -> Tensor:
    return torch.empty_like(codes, dtype=torch.float32)


torch.library.define("edgeq::dequantize_blocks", SCHEMA)
torch.library.impl("edgeq::dequantize_blocks", "CompositeExplicitAutograd", _dequantize)
torch.library.register_fake("edgeq::dequantize_blocks", _shape)
DEQUANTIZE_BLOCKS = torch.ops.edgeq.dequantize_blocks.default
