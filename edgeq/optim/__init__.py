"""Optimizers whose state takes one byte a value: Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022.

Drop-in for those of torch.optim:

    optimizer = edgeq.optim.AdamW8bit(model.parameters(), lr=1e-3)

A kernel in C++ does a step where it was built and the parameters are on the CPU; torch does it elsewhere, to the same bytes.
"""

from edgeq.optim.native import paths
from edgeq.optim.optimizers import Adagrad8bit, Adam8bit, AdamW8bit, Lion8bit, SGD8bit
from edgeq.optim.stable import StableEmbedding

__all__ = ["Adagrad8bit", "Adam8bit", "AdamW8bit", "Lion8bit", "SGD8bit", "StableEmbedding", "paths"]
