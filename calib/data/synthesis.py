"""What every source of made-up batches stands on: the network and its inputs, noise of their range, gradient steps that go on
where they were interrupted."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.utils._pytree as pytree
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeq import whole
from edgeq.graph.capture import Captured
from edgeq.graph.own import arguments, line_of, tensors
from edgeq.schema import fit
from edgeq.spec import EdgeqError, EdgeqWarning, Progress

EVERY: Final = 10.0  # seconds of steps that an interruption may cost
FARTHEST: Final = 2.5  # pixels from 0 to 1 by ImageNet's means and deviations lie between −2.1 and 2.6
CHANNELS: Final = (1, 3, 4)  # of pictures
CLOSE: Final = 1e-3  # of an output's largest value: what examples stacked and alone may differ by


@dataclass
class Subject:
    """The user's own network, undisturbed and in eval mode, and what it takes.

    kept: file name → its path where unfinished work is kept; None: nowhere.
    """

    network: nn.Module
    captured: Captured
    progress: Progress
    kept: Callable[[str], Path] | None = None

    @property
    def first(self) -> int:
        """Examples in one batch."""
        return next((t.shape[0] for t in self.captured.example if t.dim()), 1)

    def batches(self, images: int) -> int:
        """Batches that hold so many images."""
        return math.ceil(images / self.first)

    def floats(self) -> list[int]:
        """Which inputs are floats.

        Raises:
            EdgeqError: none is.
        """
        found = [i for i, t in enumerate(self.captured.example) if t.is_floating_point()]
        if not found:
            raise EdgeqError(
                f"{type(self.network).__name__} takes integers alone, which no gradient reaches and no noise stands for: "
                "calibrate it on real data, by calibration() or --data FOLDER"
            )
        return found

    def noise(self, images: int, seed: int) -> list[tuple[Tensor, ...]]:
        """Batches of Gaussian noise with the mean, deviation and bounds of the example; see `moments` and `bounds`.

        Integers (indices, masks) are the example's in another order: none out of range, as many of each; said in a sentence.
        """
        floats, generator = self.floats(), torch.Generator().manual_seed(seed)
        integers = [
            i.name
            for i, t in zip(self.captured.inputs, self.captured.example, strict=True)
            if not t.is_floating_point()
        ]
        if integers:
            warnings.warn(
                f"input {', '.join(map(repr, integers))} holds integers, which cannot be made up: every batch has those of "
                "example_inputs() in another order",
                EdgeqWarning,
                stacklevel=1,
            )
        made = []
        for _ in range(self.batches(images)):
            batch = []
            for index, example in enumerate(self.captured.example):
                if index in floats:
                    mean, std = moments(example)
                    batch.append((torch.randn(example.shape, generator=generator) * std + mean).clamp(*bounds(example)))
                else:
                    order = torch.randperm(example.numel(), generator=generator)
                    batch.append(example.flatten()[order].view(example.shape))
            made.append(tuple(batch))
        return made

    def told(self, run: range) -> tuple[Path | None, Callable[[int, int], None]]:
        """Where a run of batches keeps where it stands, and what tells its progress."""
        stage = f"distil images {run.start * self.first + 1} to {run.stop * self.first}"
        return None if self.kept is None else self.kept(f"{run.start}"), partial(self.progress, stage)

    def stackable(self) -> bool:
        """Whether the user's module answers for two batches at once what it answers for each."""
        one, other = self.noise_of(0), self.noise_of(1)
        if any(t.dim() == 0 or t.shape[0] != self.first for t in one):
            return False
        with torch.no_grad():
            apart = [tensors(self(batch)) for batch in (one, other)]
            try:
                both = tensors(self([torch.cat(pair) for pair in zip(one, other, strict=True)]))
            except Exception:  # in whatever way a module says that it takes one batch alone
                return False
        for a, b, together in zip(*apart, both, strict=True):
            if a.dim() == 0 or together.shape != (2 * a.shape[0], *a.shape[1:]) or a.shape[0] != self.first:
                return False
            if not bool(((together - torch.cat((a, b))).abs() <= CLOSE * together.abs().max()).all()):
                return False
        return True

    def noise_of(self, seed: int) -> tuple[Tensor, ...]:
        """One batch of noise, without a word about its integers."""
        with warnings.catch_warnings(action="ignore"):
            return self.noise(1, seed)[0]

    def __call__(self, flat: Sequence[Tensor]) -> Any:
        """What the user's forward returns, with a graph for gradients.

        Raises:
            EdgeqError: it fails.
        """
        nested = pytree.tree_unflatten(list(flat), pytree.tree_structure(self.captured.nested))
        args, kwargs = arguments(self.network, nested)
        try:
            return self.network(*args, **kwargs)
        except EdgeqError:  # of what looks on
            raise
        except (Exception, SystemExit) as error:
            raise EdgeqError(
                f"{type(self.network).__name__}: its own forward fails on made-up inputs{line_of(error)}: "
                f"{type(error).__name__}: {error}: calibrate it on real data"
            ) from error


def sensible(images: int, seed: int, steps: int, rate: float, batch: int) -> None:
    """Raise ValueError where an option of a source that descends has no meaning."""
    if images < 1 or seed < 0 or steps < 1 or batch < 0 or not rate > 0:
        raise ValueError(
            f"{images} images from seed {seed}, {steps} steps of rate {rate:g}, batch {batch}: use "
            "1 or more images and steps, a rate above 0, and a seed and a batch of 0 or more"
        )


def weaker(source: str, why: str) -> None:
    """Warn that a source says less than statistics of training do."""
    warnings.warn(
        f"--data {source} is weaker than real data or what BatchNorms keep, as {why}: look at the accuracy before you rely on it",
        EdgeqWarning,
        stacklevel=1,
    )


def moments(example: Tensor) -> tuple[float, float]:
    """Mean and deviation of an input: the example's where it varies, else 0 and 1."""
    std, mean = torch.std_mean(example.double(), correction=0)
    varies = bool(torch.isfinite(std)) and float(std) > 0
    return (float(mean), float(std)) if varies else (0.0, 1.0)


def bounds(example: Tensor) -> tuple[float, float]:
    """Least and largest value of an input: the example's where it varies, else those of a picture in its deviations, or none.

    Without them the few largest of the values that are moved freely are thrice a picture's, and every step of the grid too.
    """
    least, largest = float(example.min()), float(example.max())
    if math.isfinite(largest - least) and largest > least:
        return least, largest
    picture = example.dim() == 4 and example.shape[1] in CHANNELS
    return (-FARTHEST, FARTHEST) if picture else (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where gradient steps stand: of that many done, the rate, the least loss so far and the steps since it fell.

    The file that keeps them holds this beside variables and moments.
    """

    step: int = 0
    rate: float = 0.0
    least: float = math.inf
    since: int = 0
    loss: float = math.inf
    done: bool = False


@dataclass(frozen=True, slots=True)
class Descent:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1) with a rate that is reduced where the loss stays.

    rate: at first. steps: at most. After `patience` steps in which the loss did not fall by GAIN the rate is halved; below a
    64th of the first it ends.
    """

    rate: float
    steps: int
    patience: int = 5

    def run(
        self,
        variables: Mapping[str, Tensor],
        loss: Callable[[int], Tensor],
        kept: Path | None,
        tell: Callable[[int, int], None],
        rates: Mapping[str, float] | None = None,
        limits: Mapping[str, tuple[float, float]] | None = None,
    ) -> float:
        """Change `variables` in place; returns the last loss. kept: where it stands is kept, and taken up from, there.

        loss: of a step, whose number is all that it may draw random numbers from. tell: gets steps done, and of how many.
        rates: of single variables, as a factor of the rate. limits: between which each stays.

        Raises:
            EdgeqError: the loss is NaN or infinite.
        """
        named = {name: x.requires_grad_() for name, x in variables.items()}
        means = {name: torch.zeros_like(x) for name, x in named.items()}
        squares = {name: torch.zeros_like(x) for name, x in named.items()}
        state = {
            **named,
            **{f"mean {n}": x for n, x in means.items()},
            **{f"square {n}": x for n, x in squares.items()},
        }
        at, saved = _taken_up(kept, state) or Standing(rate=self.rate), time.monotonic()
        try:
            while not at.done:
                found = loss(at.step)
                value = float(found.detach())
                if not math.isfinite(value):
                    raise EdgeqError(
                        f"the distillation's loss is {value} at step {at.step}: lower its rate, by --set data.rate=… , or "
                        "calibrate on real data"
                    )
                slopes = torch.autograd.grad(found, list(named.values()), allow_unused=True)
                with torch.no_grad():
                    for (name, x), slope in zip(named.items(), slopes, strict=True):
                        if slope is not None:
                            rate = at.rate * (rates or {}).get(name, 1.0)
                            _adam(x, slope, means[name], squares[name], at.step + 1, rate)
                            if limits is not None:
                                x.clamp_(*limits[name])
                at = self._next(at, value)
                tell(at.step, self.steps)
                if kept is not None and (at.done or time.monotonic() - saved >= EVERY):
                    _keep(kept, state, at)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if kept is not None and not at.done:
                _keep(kept, state, at)
            raise
        tell(self.steps, self.steps)  # it may have ended sooner
        return at.loss

    def _next(self, at: Standing, loss: float) -> Standing:
        fell = loss < at.least * (1 - GAIN)
        least, since, rate = (loss, 0, at.rate) if fell else (at.least, at.since + 1, at.rate)
        if since > self.patience:
            since, rate = 0, rate / 2
        done = at.step + 1 >= self.steps or rate < self.rate / 64
        return Standing(at.step + 1, rate, least, since, loss, done)


GAIN: Final = 0.01  # of the loss: less is no fall
DECAYS: Final = (0.9, 0.999)
EPS: Final = 1e-8


def _adam(x: Tensor, slope: Tensor, mean: Tensor, square: Tensor, step: int, rate: float) -> None:
    mean.lerp_(slope, 1 - DECAYS[0])
    square.mul_(DECAYS[1]).addcmul_(slope, slope, value=1 - DECAYS[1])
    deviation = (square / (1 - DECAYS[1] ** step)).sqrt_().add_(EPS)
    x.addcdiv_(mean, deviation, value=-rate / (1 - DECAYS[0] ** step))


def _keep(path: Path, state: Mapping[str, Tensor], at: Standing) -> None:
    told = {key: value if value != math.inf else None for key, value in dataclasses.asdict(at).items()}
    with whole.file(path) as part:
        save_file({n: t.detach().contiguous() for n, t in state.items()}, part, metadata={"standing": json.dumps(told)})


def _taken_up(path: Path | None, state: Mapping[str, Tensor]) -> Standing | None:
    """Fill `state` with what an interrupted run kept; None where it kept nothing, or nothing whole."""
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads(file.metadata()["standing"])
            found = {name: file.get_tensor(name) for name in state}
        at = fit({key: value for key, value in told.items() if value is not None}, Standing, path)
        if any(found[name].shape != x.shape for name, x in state.items()):
            raise ValueError("of other shapes")
    except Exception:  # in whatever way it is damaged: it is done again
        path.unlink(missing_ok=True)
        return None
    with torch.no_grad():
        for name, x in state.items():
            x.copy_(found[name])
    return at


def count_in(batches: int, most: int) -> list[range]:
    """`batches` in runs of at most `most`, of nearly the same size."""
    runs = math.ceil(batches / max(most, 1))
    return [range(batches * i // runs, batches * (i + 1) // runs) for i in range(runs)]
