"""The embedding layer of the paper's section 2.3: uniform start, a layer norm behind it, states of 32 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class StableWeight(nn.Parameter):
    """A parameter whose optimizer state stays in float32, whatever its size."""


class StableEmbedding(nn.Embedding):
    """nn.Embedding [rows, width] with Xavier's uniform start and a LayerNorm over `width` behind it.

    A row that a batch does not hold has gradient 0 in it; 8-bit states of its block would be as coarse as the block's largest
    value asks for, so that the weight's states keep 32 bits.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, **options: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, **options)
        self.weight = StableWeight(self.weight.data)
        self.norm = nn.LayerNorm(embedding_dim, device=options.get("device"), dtype=options.get("dtype"))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier's uniform distribution; the padding row is zero."""
        nn.init.xavier_uniform_(self.weight)
        if self.padding_idx is not None:
            with torch.no_grad():
                self.weight[self.padding_idx].fill_(0)

    def forward(self, input: Tensor) -> Tensor:
        """Indices [...] to normalised rows [..., width]."""
        rows: Tensor = self.norm(super().forward(input))
        return rows
