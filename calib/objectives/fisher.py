"""Objective `fisher`: squared error of what the span answers, each value weighed by how much the network's output hangs on it.

Li et al. 2021, BRECQ (arXiv 2102.05426), section 3.3, equation 10: Σ (ẑ − z)² · (∂L/∂z)², where the squared gradient of the loss
at the span's output z, the diagonal of its Fisher information, stands for the Hessian. There are no labels here, and the
loss against float's own output has no gradient at float's own output. Ours: the expected Fisher information under float's own
predictive distribution, E over y ~ p(y | x) of (∂ log p(y | x) / ∂z)² (Martens 2020, arXiv 1412.1193, section 5), for each frame
at its float values. y is a class where the network has one output [N, C] for N examples, whose softmax (or itself, behind a
softmax) is p. Else p is normal around each output, with its root mean square over all frames as deviation: the squared error
at the outputs. Ours too: not labels are drawn, of which nearly all say nothing where the network is sure, but signs s, with
Σ √p ∘ s ∘ log p in the place of a label's log p: the square of its gradient has the same expectation.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.cache import Cache
from edgeq.calib.floats import Floats
from edgeq.calib.objectives import Hook, Objective
from edgeq.calib.view import View
from edgeq.graph.capture import Captured
from edgeq.graph.ops import kind_of
from edgeq.graph.ordered import parted
from edgeq.spec import EdgeqError

DRAWS: Final = 4  # backward passes that the expectation is a mean of
SQUARES: Final = "squares"


class Fisher(Objective):
    """Weights of every value that the running span answers, in the cache; the squared error that they weigh.

    squares: the outputs are taken for numbers even where they look like classes.
    """

    def __init__(self, *, squares: bool) -> None:
        """Nothing is known yet."""
        self.squares = squares
        self.classes: int | None = None  # index of the output that names a class
        self.softened = False  # it is a distribution already
        self.power: list[tuple[float, int]] = []  # of each output: sum of squares over all frames, values
        self.names: list[str] = []  # of the running span's weights, in the cache
        self.each = 0.0  # Σ w · y² of a frame

    def prepare(self, captured: Captured, hook: Hook) -> None:
        """Find out what the outputs say.

        Raises:
            EdgeqError: none of them has a gradient.
        """
        results: Sequence[Node] = captured.module.graph.output_node().args[0]  # type: ignore[assignment] # a tuple of nodes
        made = [node.meta["val"] for node in results]
        numbers = [i for i, y in enumerate(made) if y.is_floating_point()]
        if not numbers:
            raise EdgeqError(
                "objective 'fisher' asks how the network's outputs depend on each layer, and they are integers: leave the "
                "argmax out of model(), or use mse"
            )
        self.power = [(0.0, 0)] * len(made)
        single = not self.squares and len(made) == 1 and made[0].dim() == 2
        if single and made[0].shape[0] == Floats(captured).first and made[0].shape[1] > 1:
            self.classes, self.softened = 0, kind_of(results[0]) == "softmax"

    def see(self, cache: Cache, frame: int, outputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """The size of each output."""
        self.power = [
            (before + float(y.double().square().sum()), count + y.numel())
            for (before, count), y in zip(self.power, outputs, strict=True)
        ]
        return ()

    def begin(self, view: View, size: int) -> None:
        """The weights of all that the span answers, from float values on both sides of it."""
        cache, total = view.twins.cache, 0.0
        for name in self.names:
            cache.drop(name)
        self.names = []
        for start, stop in view.twins.chunks(size):
            values = {node: view.twins.real(node, start, stop) for node in view.ends}
            answers = {a.name: a.found for a in view.answers(values, start, stop) if a.found.is_floating_point()}
            for name, weights in self._weights(view, values, answers, start, stop).items():
                cache.write(_name(name), start, weights, stop - start)
                total += float((weights * answers[name].detach().square()).sum())
            self.names = [_name(name) for name in answers]
        self.each = total / view.twins.frames

    @parted()
    def _weights(
        self, view: View, values: Mapping[Node, Any], answers: Mapping[str, Tensor], start: int, stop: int
    ) -> dict[str, Tensor]:
        """Mean squared gradients at `answers`, parts of `values`, by their names."""
        squares = {name: torch.zeros_like(y) for name, y in answers.items()}
        with torch.enable_grad():
            for y in answers.values():
                y.requires_grad_()
            outputs = view.outputs(values, view.twins.real, start, stop)
            for draw in range(DRAWS):
                told = [self._told(i, y, range(start, stop), draw) for i, y in outputs.items() if y.requires_grad]
                if not told:
                    break
                found = torch.autograd.grad(
                    torch.stack(told).sum(), list(answers.values()), retain_graph=True, allow_unused=True
                )
                for name, slope in zip(answers, found, strict=True):
                    if slope is not None:
                        squares[name] += slope.square() / DRAWS
        return squares

    def _told(self, index: int, output: Tensor, frames: range, draw: int) -> Tensor:
        """What is derived in the place of a label's log-likelihood, 0-d, for `output` [N, ...] of `frames`."""
        signs = _signs(output.detach(), frames, f"fisher {index} {draw}")
        if index == self.classes:
            likely = output.clamp(min=torch.finfo(output.dtype).tiny).log() if self.softened else output.log_softmax(1)
            return ((likely.detach() / 2).exp() * signs * likely).sum()
        power, count = self.power[index]
        return (signs * output).sum() * (count / power) ** 0.5 if power > 0 else output.sum() * 0

    def loss(self, view: View, values: Mapping[Node, Any], start: int, stop: int) -> Tensor:
        """Σ w · (ŷ − y)² over the same of y², of a frame's share of all."""
        error = torch.zeros(())
        for answer in view.answers(values, start, stop):
            if _name(answer.name) in self.names:
                weights = view.twins.cache.read(_name(answer.name), start, stop)
                if answer.mass is not None and weights.dim() > 2:
                    weights = weights * answer.mass[:, None]
                error = error + (weights * (answer.found - answer.wanted).square()).sum()
        return error / (self.each * (stop - start)) if self.each > 0 else error * 0


def objective(option: str) -> Fisher:
    """`fisher:squares` takes one output [N, C] for numbers, as of an embedding, instead of classes.

    Raises:
        EdgeqError: another option.
    """
    if option not in ("", SQUARES):
        raise EdgeqError(f"objective 'fisher' takes the option {SQUARES!r}, and was given {option!r}")
    return Fisher(squares=option == SQUARES)


def _name(answer: str) -> str:
    return f"fisher {answer}"


def _signs(like: Tensor, frames: range, seed: str) -> Tensor:
    """1 or −1 for each value of `like`, which has `frames` along its first axis: the same however many are taken at once."""
    shape = like.shape if len(frames) == 1 else (like.shape[0] // len(frames), *like.shape[1:])
    drawn = []
    for frame in frames:
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {frame}".encode()))
        drawn.append(torch.randint(0, 2, shape, generator=generator) * 2.0 - 1)
    return drawn[0] if len(frames) == 1 else torch.cat(drawn)
