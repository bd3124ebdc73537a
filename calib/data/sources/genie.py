"""Source `genie`: inputs drawn by a small generator out of latents (Jeon et al., CVPR 2023, arXiv 2212.04780, section 3).

Adam moves latents and generator together until mean and deviation of what every BatchNorm sees, over all images, and of the
images themselves are those of training. While it does, the input of each strided convolution is shifted at random by up to one
cell (swing convolution): a stride else looks at the same cells in every step, and what lies between them stays noise.

Ours: the generator is the authors' (256 latents, 128 and 64 channels, two doublings of the size), for signals and volumes too;
both rates are halved together where the loss stays, after some hundred steps instead of the authors' 4,000 on a GPU; what is no
image, as a vector beside it, is moved by itself as `zeroq` does. After so few steps the images span less than real ones, and real
inputs are clipped: on ResNet-20 it is below `zeroq` at eight bits (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from edgeq.calib.data.norms import Matching, input_loss
from edgeq.calib.data.synthesis import Descent, Subject, bounds, count_in, moments, sensible
from edgeq.graph.ordered import parted
from edgeq.spec import EdgeqError

aten = torch.ops.aten

LATENTS, WIDE, NARROW = 256, 128, 64  # the authors' generator
PATIENCE: Final = 20  # steps: shifts make the loss uneven
SLOPE: Final = 0.2  # of its leaky ReLU
OF_WEIGHTS: Final = 0.1  # rate of the generator's weights, of that of the latents
CONVOLUTIONS: Final = {
    **dict.fromkeys((torch.conv1d, aten.conv1d.default), 1),
    **dict.fromkeys((torch.conv2d, aten.conv2d.default), 2),
    **dict.fromkeys((torch.conv3d, aten.conv3d.default), 3),
}
CONVOLVE: Final = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True, slots=True)
class Genie:
    """images: how many. seed: of latents, generator and shifts. steps: at most. rate: of the latents, at first.

    batch: images drawn by one generator; 0: as many as some gigabytes hold.
    """

    images: int = 32
    seed: int = 0
    steps: int = 200
    rate: float = 0.1
    batch: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError where an option has no meaning."""
        sensible(self.images, self.seed, self.steps, self.rate, self.batch)

    def make(self, subject: Subject) -> list[tuple[Tensor, ...]]:
        """Flat batches; see the module.

        Raises:
            EdgeqError: no input is an image or a signal, or there is no BatchNorm.
        """
        floats, examples = subject.floats(), subject.captured.example
        drawn = [i for i in floats if 3 <= examples[i].dim() <= 5]
        if not drawn:
            raise EdgeqError(
                f"--data genie draws images and signals, and {type(subject.network).__name__} takes none: use --data zeroq"
            )
        matching = Matching(subject, "genie")
        start = subject.noise(self.images, self.seed)
        made: list[tuple[Tensor, ...]] = []
        for run in count_in(len(start), matching.together(self.batch)):
            inputs = [torch.stack(parts) for parts in zip(*start[run.start : run.stop], strict=True)]
            generator = torch.Generator().manual_seed(self.seed + run.start)
            draw = {i: Drawing(examples[i], len(run), generator) for i in drawn}
            moved = {f"{name} {i}": x for i in drawn for name, x in draw[i].variables.items()}
            moved |= {f"latents {i}": inputs[i] for i in floats if i not in drawn}

            def current(inputs: Sequence[Tensor] = inputs, draw: dict[int, Drawing] = draw) -> list[Tensor]:
                return [draw[i]() if i in draw else x for i, x in enumerate(inputs)]

            def loss(step: int, current: Any = current, run: range = run) -> Tensor:
                images = current()
                with Swing(hash_of(self.seed, run.start, step)):
                    gaps = sum((gap.loss() for gap in matching.gaps(images)), torch.zeros(()))
                return gaps + sum(input_loss(images[i], examples[i]) for i in floats)

            rates = {name: 1.0 if name.startswith("latents") else OF_WEIGHTS for name in moved}
            with parted(matching.parts(len(run))):
                Descent(self.rate, self.steps, PATIENCE).run(moved, loss, *subject.told(run), rates)
                with torch.no_grad():
                    found = current()
                matching.missed(found)
            made += [tuple(x[i].detach().clone() for x in found) for i in range(len(run))]
        return made


def hash_of(seed: int, run: int, step: int) -> int:
    """A seed of its own for every step."""
    return (seed * 1_000_003 + run) * 1_000_003 + step


class Drawing:
    """Latents and generator of one input; called, it gives that input's batches [B, *shape]."""

    def __init__(self, example: Tensor, batches: int, generator: torch.Generator) -> None:
        """Weights as torch starts its layers: uniform, by their inputs."""
        first, self.channels, *self.sizes = example.shape
        self.shape, (self.mean, self.std) = (batches, *example.shape), moments(example)
        self.bounds = bounds(example)
        self.least = [math.ceil(size / 4) for size in self.sizes]
        self.spread = CONVOLVE[len(self.sizes)]
        kernel, cells = [3] * len(self.sizes), math.prod(self.least)

        def uniform(*shape: int) -> Tensor:
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            return (torch.rand(shape, generator=generator) * 2 - 1) * bound

        self.variables = {
            "latents": torch.randn(batches * first, LATENTS, generator=generator),
            "linear": uniform(WIDE * cells, LATENTS),
            "gain of 1": torch.ones(WIDE),
            "offset of 1": torch.zeros(WIDE),
            "convolution 1": uniform(NARROW, WIDE, *kernel),
            "gain of 2": torch.ones(NARROW),
            "offset of 2": torch.zeros(NARROW),
            "convolution 2": uniform(self.channels, NARROW, *kernel),
        }

    def __call__(self) -> Tensor:
        """[B, *shape], each channel with the mean and deviation of the example over all of them."""
        of = self.variables
        x = F.linear(of["latents"], of["linear"]).view(-1, WIDE, *self.least)
        x = F.batch_norm(x, None, None, of["gain of 1"], of["offset of 1"], training=True)
        x = F.interpolate(x, [math.ceil(size / 2) for size in self.sizes])
        x = self.spread(x, of["convolution 1"], padding=1)
        x = F.batch_norm(x, None, None, of["gain of 2"], of["offset of 2"], training=True)
        x = F.interpolate(F.leaky_relu(x, SLOPE), self.sizes)
        x = torch.tanh(self.spread(x, of["convolution 2"], padding=1))
        x = F.batch_norm(x, None, None, training=True)
        return (x * self.std + self.mean).clamp(*self.bounds).view(self.shape)


class Swing(TorchFunctionMode):
    """While it lasts, the input of every strided convolution is shifted by up to one cell along each axis, at random.

    Its edge is mirrored: of an input padded by one cell on each side, a part of the old size is taken.
    """

    def __init__(self, seed: int) -> None:
        """Shifts follow from the seed, in the order of calls."""
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        stride = given.get("stride", args[3] if len(args) > 3 else 1)
        strides = stride if isinstance(stride, (list, tuple)) else (stride,)
        if func in CONVOLUTIONS and args and max(strides) > 1:
            args = (self._shifted(args[0], CONVOLUTIONS[func]), *args[1:])
        return func(*args, **given)

    def _shifted(self, x: Tensor, axes: int) -> Tensor:
        if min(x.shape[-axes:]) < 2:  # nothing to mirror
            return x
        padded = F.pad(x, [1, 1] * axes, mode="reflect")
        shifts = torch.randint(3, (axes,), generator=self.generator).tolist()
        for axis, shift in enumerate(shifts, start=x.dim() - axes):
            padded = padded.narrow(axis, shift, x.shape[axis])
        return padded
