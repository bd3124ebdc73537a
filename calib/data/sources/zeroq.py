"""Source `zeroq`: inputs distilled out of the network itself (Cai et al., CVPR 2020, arXiv 2001.00281, section 3.1, equation 3).

From noise, Adam moves the inputs until mean and deviation of what every BatchNorm sees, and of the inputs themselves, are those
that the network keeps of its training.

Ours: statistics are of all images together, as a BatchNorm's are (the authors' code takes them image by image); each BatchNorm is
met where it is called, not paired with convolutions by order; the rate is halved, and ends, where the loss stays (the authors run
500 steps at nearly one rate); an input that varies in the example has the example's mean and deviation, not 0 and 1;
no input leaves its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edgeq.calib.data.norms import Matching
from edgeq.calib.data.synthesis import Subject, sensible


@dataclass(frozen=True, slots=True)
class Zeroq:
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
        return Matching(subject, "zeroq").moved(self.images, self.seed, self.steps, self.rate, self.batch)
