"""How a loss bends along layers' weights: Hessian-vector products by two backward passes, squared gradients and relevance by one.

The loss needs no labels: KL from the float network's own distribution, else half the squared error over the outputs' mean square
(edgeq.calib.likelihood). At float's weights both have no gradient, and their Hessian is that distribution's Fisher information
(Martens 2020, arXiv 1412.1193, section 5). A task's hook `loss(inputs, outputs) -> 0-d tensor`, of tuples of flat tensors, takes
their place. All are means over the frames' examples, or over frames where the outputs name no classes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.data.observation import answers
from edgeq.calib.floats import Floats
from edgeq.calib.likelihood import LEAST, is_softened, log_likely, names_classes, squared_size
from edgeq.calib.study import Change, Study, Variant
from edgeq.graph.kinds import role_of, weights_of
from edgeq.graph.ops import constant, kind_of, value
from edgeq.graph.ordered import ordered, parted
from edgeq.spec import EdgeqError, Progress


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer with constant weights: its node, its key, the node that holds them, their shape in torch's layout."""

    node: Node
    key: str
    held: Node
    shape: torch.Size

    @property
    def count(self) -> int:
        """How many weights it has."""
        return self.shape.numel()


@dataclass(frozen=True, slots=True)
class Bent:
    """What one stack of frames says: gradients of the loss at the layers' weights, to be derived again."""

    weights: list[Tensor]
    slopes: list[Tensor]

    def product(self, index: int, direction: Tensor) -> Tensor:
        """A layer's own block of the Hessian times `direction`, which is shaped as its weights."""
        slope, weight = self.slopes[index], self.weights[index]
        if not slope.requires_grad:
            return torch.zeros_like(weight)
        (found,) = torch.autograd.grad(slope, weight, direction, retain_graph=True, allow_unused=True)
        return torch.zeros_like(weight) if found is None else found


class Curvature:
    """The loss of a study around the float network's weights."""

    def __init__(self, study: Study, layers: Sequence[Layer]) -> None:
        """layers: whose weights vary."""
        self.study, self.captured, self.layers = study, study.captured, layers
        self.classes, self.softened = names_classes(self.captured), is_softened(self.captured)
        self.outputs = answers(self.captured)

    @cached_property
    def power(self) -> list[float]:
        """Mean square of each output over all frames; 1 where there is nothing to divide by."""
        sums: dict[int, float] = {}
        count: dict[int, int] = {}
        for real, _ in self.study.answers(self.study.variant):
            for index, y in enumerate(real):
                sums[index] = sums.get(index, 0.0) + squared_size(y)
                count[index] = count.get(index, 0) + y.numel()
        return [sums[i] / count[i] if sums[i] > 0 else 1.0 for i in sums]

    def bent(self, stacks: Iterable[int] | None = None) -> Iterator[Bent]:
        """Gradients for one stack of frames after the other; their Hessians add up to that of the mean loss.

        stacks: some of study.stacks, which then are all there is; None: all.

        Raises:
            EdgeqError: no output depends on a weight smoothly, or the task's loss says nothing.
        """
        chosen = list(range(len(self.study.stacks)) if stacks is None else stacks)
        count = sum(self._examples(index) for index in chosen)
        for index in chosen:
            with parted(), torch.enable_grad():
                weights, outputs, _ = self._forward(index)
                loss = self._loss(index, outputs) / count
                found = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
                slopes = [torch.zeros_like(w) if f is None else f for w, f in zip(weights, found, strict=True)]
            yield Bent(weights, slopes)

    def squared(self, draws: int, progress: Progress) -> list[Tensor]:
        """The diagonal of the Fisher information at each layer's weights: E over y ~ p(y | x) of (∂ log p(y | x) / ∂w)², a mean
        over examples. As objective `fisher` takes it: signs s in the place of labels, Σ √p ∘ s ∘ log p, whose squared gradient
        has the same expectation, for all examples of a stack at once, as their products vanish likewise.
        """
        totals = [torch.zeros_like(constant(self.captured.module, layer.held)) for layer in self.layers]
        count = sum(self._examples(index) for index in range(len(self.study.stacks)))
        for index in range(len(self.study.stacks)):
            with parted(), torch.enable_grad():
                weights, outputs, _ = self._forward(index)
                for draw in range(draws):
                    told = self._told(
                        outputs, torch.Generator().manual_seed(zlib.crc32(f"fisher {index} {draw}".encode()))
                    )
                    found = torch.autograd.grad(told, weights, retain_graph=draw + 1 < draws, allow_unused=True)
                    for total, slope in zip(totals, found, strict=True):
                        if slope is not None:
                            total += slope.square() / (draws * count)
            progress("Fisher information", index + 1, len(self.study.stacks))
        return totals

    @parted()
    def relevance(self, progress: Progress) -> list[float]:
        """Σ |y · ∂f/∂y| over each layer's output y, a mean over examples. f: the largest logit, or log p, of each example where
        outputs name classes; else half their squares over their mean squares.
        """
        totals = [0.0] * len(self.layers)
        count = sum(self._examples(index) for index in range(len(self.study.stacks)))
        for index in range(len(self.study.stacks)):
            with torch.enable_grad():
                _, outputs, made = self._forward(index, [layer.node for layer in self.layers])
                found = torch.autograd.grad(self._answered(outputs), made, allow_unused=True)
            for place, (y, slope) in enumerate(zip(made, found, strict=True)):
                if slope is not None:
                    totals[place] += float((y.detach() * slope).abs().double().sum()) / count
            progress("relevance", index + 1, len(self.study.stacks))
        return totals

    def _examples(self, index: int) -> int:
        """Examples of a stack where outputs name classes, else frames."""
        return self.study.counts[index] * (self.study.floats.first if self.classes else 1)

    def _forward(self, index: int, keep: Sequence[Node] = ()) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The layers' weights as variables, and the outputs that depend on them; keep: nodes whose values come third."""
        replaced = {
            layer.held: constant(self.captured.module, layer.held).clone().requires_grad_() for layer in self.layers
        }
        floats = Floats(self.captured, replaced)
        with ordered():
            wanted = {*self.outputs, *keep}
            found = {n: x for n, x in floats.walk(self.study.stacks[index]) if n in wanted}
        outputs = [found[n] for n in self.outputs]
        if not any(y.requires_grad for y in outputs):
            raise EdgeqError(
                "a Hessian asks how the network's outputs depend on each layer's weights, and none does smoothly (integers, an "
                "argmax?): return what they are made of from model(), or measure sqnr"
            )
        return [replaced[layer.held] for layer in self.layers], outputs, [found[n] for n in keep]

    def _loss(self, index: int, outputs: Sequence[Tensor]) -> Tensor:
        """0-d, summed over the stack's examples."""
        own = self.study.hook("loss")
        if own is not None:
            loss = own(self.study.stacks[index], tuple(outputs))
            if not (isinstance(loss, Tensor) and loss.dim() == 0 and loss.requires_grad and bool(torch.isfinite(loss))):
                raise EdgeqError(
                    "loss(inputs, outputs) of the task returned no finite 0-d tensor that depends on outputs: return one, as a "
                    "mean over the examples, or leave loss out"
                )
            return loss * self._examples(index)
        if self.classes:
            likely = log_likely(outputs[0], softened=self.softened)
            real = likely.detach()
            return (real.exp() * (real - likely)).sum()
        return torch.stack(
            [
                (y - y.detach()).square().sum() / (2 * p)
                for y, p in zip(outputs, self.power, strict=True)
                if y.requires_grad
            ]
        ).sum()

    def _answered(self, outputs: Sequence[Tensor]) -> Tensor:
        """f of `relevance`, 0-d."""
        if self.classes:
            return (outputs[0].clamp(min=LEAST).log() if self.softened else outputs[0]).amax(1).sum()
        pairs = [(y, p) for y, p in zip(outputs, self.power, strict=True) if y.requires_grad]
        return torch.stack([y.square().sum() / (2 * p) for y, p in pairs]).sum()

    def _told(self, outputs: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """What is derived in the place of labels' log-likelihood, 0-d."""

        def signs(y: Tensor) -> Tensor:
            return torch.randint(0, 2, y.shape, generator=generator) * 2.0 - 1

        if self.classes:
            likely = log_likely(outputs[0], softened=self.softened)
            return ((likely.detach() / 2).exp() * signs(likely) * likely).sum()
        drawn = [(signs(y) * y).sum() / p**0.5 for y, p in zip(outputs, self.power, strict=True) if y.requires_grad]
        return torch.stack(drawn).sum()


def weighted(study: Study) -> list[Layer]:
    """The network's layers with constant weights, in forward order."""
    found = []
    for node in study.floats.nodes:
        kind = kind_of(node)
        if role_of(kind) != "layer":
            continue
        held = node.args[weights_of(kind).weight]
        if isinstance(held, Node) and held.op == "get_attr":
            found.append(Layer(node, study.captured.keys[node.name], held, value(held).shape))
    return found


def moved(study: Study, layer: Layer, variant: Variant) -> Tensor:
    """Q(W) − W of a layer's weights, in torch's layout; 0 where they are float."""
    own = constant(study.captured.module, layer.held)
    if layer.node in variant.halves:
        return own.half().float() - own
    if layer.node in variant.numbers.weighted:
        return variant.numbers.constants(layer.node)[0] - own
    return torch.zeros_like(own)


def squares(study: Study, layers: Mapping[str, Layer], lines: Change) -> dict[str, float]:
    """‖Q(W) − W‖² of each layer that `lines` name, less what the base has of it."""
    variant = study.change(lines)
    with ordered():
        return {key: _moved_far(study, layers[key], variant) for key in lines if key in layers}


def _moved_far(study: Study, layer: Layer, variant: Variant) -> float:
    after, before = (moved(study, layer, v).double().square().sum() for v in (variant, study.variant))
    return float(after - before)
