"""What a step computes, in torch: single float32 operations in a fixed order, as native/optim.cpp has them.

The two give the same bytes: products and sums are rounded one by one, roots and quotients correctly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["adam", "momentum", "nesterov", "lion", "adagrad"]
KINDS: tuple[Kind, ...] = ("adam", "momentum", "nesterov", "lion", "adagrad")


def rounded(number: float) -> float:
    """The float32 nearest to `number`, as both paths use it."""
    return float(np.float32(number))


@dataclass(frozen=True, slots=True)
class Numbers:
    """The scalars of one parameter's step, each a float32.

    rest1, rest2: 1 - beta. Adam's beta1 and beta2 are beta / (1 - beta), see `read`. rate: of the update. keep:
    1 - lr * weight_decay, where the decay is apart from the gradient; decay: weight_decay, where it is part of it. scale: of
    the gradient. plain: momentum begins with the gradient itself.
    """

    beta1: float = 0.0
    rest1: float = 1.0
    beta2: float = 0.0
    rest2: float = 1.0
    epsilon: float = 0.0
    rate: float = 0.0
    keep: float = 1.0
    decay: float = 0.0
    scale: float = 1.0
    plain: bool = False


def factors(kind: Kind, at: Numbers, first: bool) -> tuple[float, float]:
    """What a state (`first`: the momentum) is multiplied by when it is read, and when it is written.

    Adam computes with moments that lack the factor 1 - beta: M = m·β₁/(1−β₁) + g, and m = M·(1−β₁). Of codes it is their
    scales that are multiplied, which saves a product a value.
    """
    if kind != "adam":
        return 1.0, 1.0
    return (at.beta1, at.rest1) if first else (at.beta2, at.rest2)


def update(
    kind: Kind, weight: Tensor, gradient: Tensor, first: Tensor | None, second: Tensor | None, at: Numbers
) -> None:
    """One step in place: `weight` and the float32 states `first` (momentum) and `second` (squares).

    adam: Kingma and Ba 2015, algorithm 1, in the order at the end of its section 2, on states times their `factors`; with
    `keep`, Loshchilov and Hutter 2019, algorithm 2. momentum, nesterov: as torch.optim.SGD. lion: Chen et al. 2023,
    algorithm 2. adagrad: Duchi et al. 2011, as torch.optim.Adagrad.
    """
    g = gradient * at.scale
    if kind != "lion":
        g = g + weight * at.decay
    kept = weight * at.keep
    if kind == "adam":
        assert first is not None and second is not None
        first.add_(g)
        second.add_(g * g)
        step = first / (_root(second) + at.epsilon)
    elif kind == "lion":
        assert first is not None
        step = torch.sign(first * at.beta1 + g * at.rest1)
        first.copy_(first * at.beta2 + g * at.rest2)
    elif kind == "adagrad":
        assert second is not None
        second.copy_(second + g * g)
        step = g / (_root(second) + at.epsilon)
    else:
        assert first is not None
        first.copy_(g if at.plain else first * at.beta1 + g * at.rest1)
        step = g + first * at.beta1 if kind == "nesterov" else first
    weight.copy_(kept - step * at.rate)


def _root(x: Tensor) -> Tensor:
    """Correctly rounded, which torch.sqrt of float32 on the CPU is not (17 % of values are one step off in 2.13)."""
    return torch.sqrt(x.double()).float()
