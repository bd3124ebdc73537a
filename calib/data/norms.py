"""What every BatchNorm of the user's own network sees, beside what it saw in training; inputs are moved until both agree.

Each is met where it is called, in the user's own forward: a module's or a function's, one that is called twice, one behind
branches. Nothing is paired by order.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from edgeq.calib.data.synthesis import Descent, Subject, bounds, count_in, moments
from edgeq.graph.ordered import parted
from edgeq.spec import EdgeqError, EdgeqWarning

aten = torch.ops.aten

# spelling of a BatchNorm → its arguments by position
SPELLINGS: Final = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    **dict.fromkeys(
        (torch.batch_norm, aten.batch_norm.default),
        ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
    ),
    aten._native_batch_norm_legit_no_training.default: (
        "input", "weight", "bias", "running_mean", "running_var", "momentum", "eps",
    ),
}  # fmt: skip
TOKENS: Final = (F.layer_norm, torch.layer_norm, aten.layer_norm.default)
EPS: Final = 1e-5  # of a BatchNorm that says none
FAR: Final = 0.5  # deviations: noise is as far off
VALUES: Final = 1 << 27  # that BatchNorms see at once: half a gigabyte of float32, and what stands around it
ALONE: Final = 1 << 22  # likewise, up to which two threads wait for each other


@dataclass(frozen=True, slots=True)
class Norm:
    """A BatchNorm's statistics of training, [C] each: mean, and deviation with its eps; 0 and 1 of a LayerNorm."""

    name: str
    mean: Tensor
    std: Tensor
    eps: float


@dataclass
class Seen:
    """Inputs of each BatchNorm in one run of the network, in the order of calls, by the identity of its running mean."""

    norms: dict[int, Norm] = field(default_factory=dict)
    inputs: dict[int, list[Tensor]] = field(default_factory=dict)


class Watch(TorchFunctionMode):
    """While it lasts, every BatchNorm that the network calls puts its input into `seen`.

    A module that has running statistics and writes its arithmetic out, as frozen ones do, is met by its input.
    """

    def __init__(self, network: nn.Module, *, tokens: bool = False) -> None:
        """Hooks wait for the body. network: whose buffers give names. tokens: LayerNorms instead, by their results."""
        super().__init__()
        self.tokens = tokens
        held = (*network.named_buffers(), *network.named_parameters())
        self.names = {id(b): name.rpartition(".")[0] for name, b in held}
        self.written_out = [
            m for m in network.modules()
            if isinstance(getattr(m, "running_mean", None), Tensor) and isinstance(getattr(m, "running_var", None), Tensor)
        ]  # fmt: skip
        self.seen, self.hooks = Seen(), list[RemovableHandle]()
        self.functions: set[int] = set()  # running means that a function took

    def __enter__(self) -> Watch:
        self.seen = Seen()
        self.hooks = [m.register_forward_hook(self._called) for m in self.written_out]
        super().__enter__()  # type: ignore[no-untyped-call] # torch's
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call] # torch's
        for hook in self.hooks:
            hook.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.tokens and func in TOKENS:
            self._meet_tokens(*args, **(kwargs or {}))
        elif func in SPELLINGS and not self.tokens:
            given = {**dict(zip(SPELLINGS[func], args, strict=False)), **(kwargs or {})}
            if given.get("running_mean") is not None and not given.get("training", False):
                self.functions.add(id(given["running_mean"]))
                self._meet(given["input"], given["running_mean"], given["running_var"], float(given.get("eps", EPS)))
        return func(*args, **(kwargs or {}))

    def _called(self, module: Any, args: Any, result: Any) -> None:
        """A module with running statistics that no function took: it is its own arithmetic."""
        mean = module.running_mean
        if self.tokens or id(mean) in self.functions or not args or not isinstance(args[0], Tensor):
            return
        if args[0].dim() > 1 and args[0].shape[1] == mean.numel():
            self._meet(args[0], mean, module.running_var, float(getattr(module, "eps", EPS)))

    def _meet_tokens(
        self, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, *more: Any, **others: Any
    ) -> None:
        """What a LayerNorm makes before gain and offset, [tokens, C]."""
        x = F.layer_norm(input, normalized_shape).flatten(input.dim() - len(normalized_shape)).flatten(0, -2)
        key = len(self.seen.norms) if weight is None else id(weight)
        if key not in self.seen.norms:
            name = self.names.get(key) or f"LayerNorm {len(self.seen.norms)}"
            self.seen.norms[key] = Norm(name, torch.zeros(x.shape[1]), torch.ones(x.shape[1]), EPS)
        self.seen.inputs.setdefault(key, []).append(x)

    def _meet(self, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> None:
        key = id(mean)
        if key not in self.seen.norms:
            name = self.names.get(key) or f"BatchNorm {len(self.seen.norms)}"
            mean, var = mean.detach().flatten(), var.detach().flatten()
            if not bool(torch.isfinite(mean).all() and torch.isfinite(var).all() and (var >= 0).all()):
                raise EdgeqError(
                    f"{name}: its running statistics are NaN, infinite or negative, and no input has such: train the network "
                    "again, or calibrate it on real data"
                )
            self.seen.norms[key] = Norm(name, mean, (var + eps).sqrt(), eps)
        self.seen.inputs.setdefault(key, []).append(x)


@dataclass(frozen=True, slots=True)
class Gap:
    """What one BatchNorm's inputs have, and what they had in training, [C] each."""

    norm: Norm
    mean: Tensor
    std: Tensor

    def loss(self) -> Tensor:
        """Squared distance of both, summed over channels (ZeroQ's equation 3)."""
        return (self.mean - self.norm.mean).square().sum() + (self.std - self.norm.std).square().sum()

    def deviations(self) -> float:
        """Both distances in deviations of training, of the typical channel."""
        return float((((self.mean - self.norm.mean).abs() + (self.std - self.norm.std).abs()) / self.norm.std).median())


class Matching:
    """Runs made-up batches through the network and compares what its BatchNorms see with what they saw in training."""

    def __init__(self, subject: Subject, source: str, *, tokens: bool = False) -> None:
        """Look which BatchNorms there are, by one run on noise. source: its name, for sentences. tokens: see Watch.

        Raises:
            EdgeqError: there are none, or gradients do not come through. Warns where they look untrained.
        """
        self.subject, self.watch = subject, Watch(subject.network, tokens=tokens)
        inputs = subject.noise_of(0)
        with torch.no_grad(), self.watch:
            subject(inputs)
        seen = self.watch.seen
        if not seen.norms:
            raise EdgeqError(_none(source, type(subject.network).__name__, tokens))
        if not tokens and all(
            bool((n.mean == 0).all()) and bool(((n.std**2 - n.eps - 1).abs() < 1e-6).all()) for n in seen.norms.values()
        ):
            warnings.warn(
                f"every BatchNorm of {type(subject.network).__name__} has mean 0 and variance 1, as before any training: what "
                f"--data {source} makes by them says nothing",
                EdgeqWarning,
                stacklevel=1,
            )
        self.values = sum(x.numel() for xs in seen.inputs.values() for x in xs)  # that one batch's BatchNorms see
        self.raw = {i for i, x in enumerate(inputs) if any(x is y for ys in seen.inputs.values() for y in ys)}
        self.stacked = subject.stackable()

    def bounds(self, index: int) -> tuple[float, float]:
        """Between which an input stays; a BatchNorm that reads it as it comes knows better than a constant example."""
        return (-math.inf, math.inf) if index in self.raw else bounds(self.subject.captured.example[index])

    def missed(self, batches: Sequence[Tensor]) -> None:
        """Warn where what the BatchNorms see stays far from what they saw in training."""
        with torch.no_grad():
            gaps = self.gaps(batches)
        worst = max(gaps, key=Gap.deviations)
        if float(torch.tensor([gap.deviations() for gap in gaps]).median()) > FAR:
            warnings.warn(
                f"what the BatchNorms see of the made-up inputs stays far from their training, most at {worst.norm.name!r} "
                f"({worst.deviations():.1f} deviations): give example_inputs() values as the network will see them, as their "
                "range is where it begins, or more steps",
                EdgeqWarning,
                stacklevel=1,
            )

    def moved(self, images: int, seed: int, steps: int, rate: float, batch: int) -> list[tuple[Tensor, ...]]:
        """Flat batches: noise whose floats were moved until the norms agree. batch: images moved together, see `together`."""
        floats, examples = self.subject.floats(), self.subject.captured.example
        start = self.subject.noise(images, seed)
        made: list[tuple[Tensor, ...]] = []
        for run in count_in(len(start), self.together(batch)):
            inputs = [torch.stack(parts) for parts in zip(*start[run.start : run.stop], strict=True)]
            moving = {f"input {i}": inputs[i] for i in floats}
            limits = {f"input {i}": self.bounds(i) for i in floats}

            def loss(step: int, inputs: list[Tensor] = inputs) -> Tensor:
                gaps = sum((gap.loss() for gap in self.gaps(inputs)), torch.zeros(()))
                return gaps + sum(input_loss(inputs[i], examples[i]) for i in floats)

            with parted(self.parts(len(run))):
                Descent(rate, steps).run(moving, loss, *self.subject.told(run), limits=limits)
                self.missed(inputs)
            made += [tuple(x[i].detach().clone() for x in inputs) for i in range(len(run))]
        return made

    def together(self, images: int) -> int:
        """Batches to move together: those of so many images, or of as many as memory should hold where it is 0."""
        return max(images // self.subject.first if images else VALUES // self.values, 1)

    def parts(self, batches: int) -> int:
        """Threads for a step on so many batches: two, where they would not wait for each other."""
        return 2 if self.values * batches > ALONE else 1

    def gaps(self, batches: Sequence[Tensor]) -> list[Gap]:
        """Each BatchNorm's, of all batches together.

        batches: [B, *shape] for each input, of B batches.
        """
        if self.stacked:
            runs = [self._run([x.flatten(0, 1) for x in batches])]
        else:
            runs = [self._run([x[i] for x in batches]) for i in range(len(batches[0]))]
        return [Gap(norm, *_pooled([run.inputs[key] for run in runs], norm.eps)) for key, norm in runs[0].norms.items()]

    def _run(self, flat: Sequence[Tensor]) -> Seen:
        with self.watch:
            self.subject(flat)
        seen = self.watch.seen
        if torch.is_grad_enabled() and not any(x.requires_grad for xs in seen.inputs.values() for x in xs):
            raise EdgeqError(
                f"{type(self.subject.network).__name__}: no gradient comes from its BatchNorms back to its inputs (is its "
                "forward under torch.no_grad, or rounds?): calibrate it on real data, or on --data noise, which is weaker"
            )
        return seen


def _none(source: str, network: str, tokens: bool) -> str:
    """That a network has no norms to go by, and what can be done."""
    if tokens:
        return f"--data {source} goes by LayerNorms, and {network} calls none: calibrate it on real data, or on --data noise"
    return (
        f"--data {source} goes by the statistics that BatchNorms keep of their training, and {network} calls none (or they were "
        "folded): calibrate it on real data, or on --data layernorm (a transformer) or noise, which are weaker, as nothing says "
        "what the network's layers are used to"
    )


def _pooled(runs: Sequence[Sequence[Tensor]], eps: float) -> tuple[Tensor, Tensor]:
    """Mean and deviation [C] of a BatchNorm's inputs: pooled over runs; averaged over its calls, as training does it."""
    means, variances = [], []
    for call in zip(*runs, strict=True):
        each = [torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0) for x in call]
        if len(each) == 1:
            variance, mean = each[0]
        else:
            mean = torch.stack([m for _, m in each]).mean(0)
            variance = torch.stack([v + (m - mean).square() for v, m in each]).mean(0)
        means.append(mean)
        variances.append(variance)
    return torch.stack(means).mean(0), (torch.stack(variances).mean(0) + eps).sqrt()


def input_loss(x: Tensor, example: Tensor) -> Tensor:
    """The same distance for an input [B, *shape] itself: each channel of an image, a vector as a whole; see `moments`."""
    wanted, std = moments(example)
    kept = 2 if example.dim() > 2 else None  # the axis of channels, behind those of batches and examples
    variance, mean = torch.var_mean(x, [d for d in range(x.dim()) if d != kept], correction=0)
    return (mean - wanted).square().sum() + ((variance + EPS).sqrt() - std).square().sum()
