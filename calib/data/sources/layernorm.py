"""Source `layernorm`: for networks without BatchNorm; weaker, as a LayerNorm keeps nothing of its training.

*Ours*: from noise, Adam moves the inputs until every channel that a LayerNorm has normalised has mean 0 and deviation 1 over all
tokens of all inputs, as it has on average over channels anyway: no channel stands still, and none alone takes the range.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edgeq.calib.data.norms import Matching
from edgeq.calib.data.synthesis import Subject, sensible, weaker


@dataclass(frozen=True, slots=True)
class Layernorm:
    """images: how many. seed: of the noise. steps: of gradient descent, at most. rate: of Adam, at first.

    batch: images moved together; 0: as many as some gigabytes hold.
    """

    images: int = 32
    seed: int = 0
    steps: int = 120
    rate: float = 0.5
    batch: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError where an option has no meaning."""
        sensible(self.images, self.seed, self.steps, self.rate, self.batch)

    def make(self, subject: Subject) -> list[tuple[Tensor, ...]]:
        """Flat batches; see the module."""
        matching = Matching(subject, "layernorm", tokens=True)
        weaker("layernorm", "a LayerNorm keeps nothing of its training")
        return matching.moved(self.images, self.seed, self.steps, self.rate, self.batch)
