"""Objectives: what must stay the same while a span learns. One file each; `objective` finds one by the name that a recipe uses.

A file here has `objective(option)`, which reads what stands behind the colon of its name and returns an Objective.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from edgeq.spec import EdgeqError, Progress

if TYPE_CHECKING:
    from torch import Tensor
    from torch.fx import Node

    from edgeq.calib.cache import Cache
    from edgeq.calib.view import View
    from edgeq.graph.capture import Captured

Hook = Callable[[str], Callable[..., Any] | None]  # the task's function of a name, None where it has none


class Objective(ABC):
    """What a span's numbers are judged by: `loss`; the rest is for those that must know more than the span.

    needs: what it asks for beside data, in the words of edgeq.calib.needs. behind: it looks at the network's own outputs, so that
    a look costs a way through all that lies behind the span.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    behind: ClassVar[bool] = False

    def prepare(self, captured: Captured, hook: Hook) -> None:  # noqa: B027  most need none
        """Before a batch is read.

        Raises:
            EdgeqError: the task or the network lacks what it needs.
        """

    def see(self, cache: Cache, frame: int, outputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """Take in the float network's `outputs` for a frame; returns what of the loss network and data do not say."""
        return ()

    def ready(self, frames: int, progress: Progress) -> None:  # noqa: B027  most need none
        """All frames were seen, so many.

        Raises:
            EdgeqError: they say nothing.
        """

    def guides(self, start: int, stop: int) -> bool:
        """Whether frames `start` to `stop` say something."""
        return True

    def begin(self, view: View, size: int) -> None:  # noqa: B027  most need none
        """A span begins, of which at most `size` frames are looked at together."""

    @abstractmethod
    def loss(self, view: View, values: Mapping[Node, Any], start: int, stop: int) -> Tensor:
        """0-d, of frames `start` to `stop` where the span gives `values`; in any unit, as each counts by where it started."""


@runtime_checkable
class Judged(Protocol):
    """A step that asks for objectives."""

    @property
    def objectives(self) -> tuple[str, ...]:
        """Their names."""


def names() -> list[str]:
    """The objectives there are."""
    return sorted(found.name for found in iter_modules(__path__))


def objective(text: str) -> Objective:
    """A new objective of the kind that `text` names, with its option behind a colon.

    Raises:
        EdgeqError: there is no such objective, or it takes no such option.
    """
    name, _, option = text.partition(":")
    if name not in names():
        raise EdgeqError(f"unknown objective {text!r}: use {', '.join(names())}")
    made: Objective = import_module(f"{__name__}.{name}").objective(option)
    return made


def plain(option: str, name: str) -> None:
    """For an objective that takes no option.

    Raises:
        EdgeqError: there is one.
    """
    if option:
        raise EdgeqError(f"objective {name!r} takes no option, and was given {option!r}")
