"""Objective `mse`: the squared error of what the span answers, relative to its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from edgeq.calib.cells import relative_error
from edgeq.calib.objectives import Objective, plain
from edgeq.calib.view import View


class SquaredError(Objective):
    """Σ m · (ŷ − y)² / Σ m · y² over all cells of all answers, with m the mass of a cell."""

    def loss(self, view: View, values: Mapping[Node, Any], start: int, stop: int) -> Tensor:
        """See the class."""
        error, power = torch.zeros(()), torch.zeros(())
        for answer in view.answers(values, start, stop):
            more, size = relative_error(answer.found, answer.wanted, answer.mass)
            error, power = error + more, power + size
        return error / power.clamp(min=torch.finfo(torch.float32).tiny)


def objective(option: str) -> SquaredError:
    """It takes no option."""
    plain(option, "mse")
    return SquaredError()
