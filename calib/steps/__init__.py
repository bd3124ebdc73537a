"""Steps: what a recipe does, in its order. One file each, named as its step; its dataclass has the same name with a capital."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from edgeq.spec import EdgeqError, Step


def names() -> list[str]:
    """The steps there are."""
    return sorted(found.name for found in iter_modules(__path__))


def kind(name: str) -> type[Step]:
    """The step called `name`.

    Raises:
        EdgeqError: there is none.
    """
    if name not in names():
        raise EdgeqError(f"unknown step {name!r}: use {', '.join(names())}")
    found: type[Step] = getattr(import_module(f"{__name__}.{name}"), name.capitalize())
    return found


def name_of(step: Step) -> str:
    """What a step is called."""
    return type(step).__name__.lower()
