"""Source `noise`: Gaussian noise of the range of the example inputs. Weaker than anything that looks at the network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from edgeq.calib.data.synthesis import Subject, weaker


@dataclass(frozen=True, slots=True)
class Noise:
    """images: how many. seed: of the noise."""

    images: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError where an option has no meaning."""
        if self.images < 1 or self.seed < 0:
            raise ValueError(f"{self.images} images from seed {self.seed}: use 1 or more, and a seed of 0 or more")

    def make(self, subject: Subject) -> list[tuple[Tensor, ...]]:
        """The batches that all other sources start from."""
        weaker("noise", "nothing of the network's training is in it")
        return subject.noise(self.images, self.seed)
