"""Sources: calibration batches where there is no data. One file each; `kind` finds one by the name that `--data` uses.

A file here has a class of its own name with a capital, a frozen dataclass whose fields are its options, with defaults. `images`
and `seed` all of them have; `make` gives the batches.
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgeq.calib.data.synthesis import Subject
from edgeq.calib.workspace import distilling
from edgeq.graph.capture import Captured
from edgeq.graph.own import plain, undisturbed
from edgeq.spec import EdgeqError, Progress


class Source(Protocol):
    """images: how many are made, spread over batches as large as the example's. seed: of the noise that it starts from."""

    @property
    def images(self) -> int: ...
    @property
    def seed(self) -> int: ...

    def make(self, subject: Subject) -> list[tuple[Tensor, ...]]:
        """Flat batches of the shapes of the example inputs.

        Raises:
            EdgeqError: the network has nothing that the source could go by.
        """


def names() -> list[str]:
    """The sources there are."""
    return sorted(found.name for found in iter_modules(__path__))


def kind(name: str) -> Any:
    """The class of a source, by its name.

    Raises:
        EdgeqError: there is none.
    """
    if name not in names():
        raise EdgeqError(f"unknown data source {name!r}: use {', '.join(names())}, a folder or a file of arrays")
    return getattr(import_module(f"{__name__}.{name}"), name.capitalize())


def name_of(source: Source) -> str:
    """What `--data` calls it."""
    return type(source).__name__.lower()


def made(
    source: Source, model: nn.Module | ExportedProgram, captured: Captured, output: Path | None, progress: Progress
) -> list[tuple[Tensor, ...]]:
    """A source's batches for a network, which stays as it was; the same ones on any number of threads.

    What is finished of a long distillation is kept in `<output>.partial`, and the same call goes on from there.

    Raises:
        EdgeqError: the network has nothing that the source could go by.
    """
    network = plain(model)
    with (
        undisturbed(network),
        torch.inference_mode(False),
        torch.enable_grad(),  # whatever the caller has
        distilling(output, _fingerprint(source, network, captured)) as kept,
    ):
        return source.make(Subject(network, captured, progress, kept))


def _fingerprint(source: Source, network: nn.Module, captured: Captured) -> str:
    """A hash of all that decides a source's batches."""
    found = hashlib.sha256(repr((source, version("edgeq"), torch.__version__, captured.module.code)).encode())
    for name, tensor in [*sorted(network.state_dict().items()), *enumerate(captured.example)]:
        found.update(str(name).encode())
        if isinstance(tensor, Tensor):
            found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()
