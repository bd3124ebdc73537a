"""One folder for each runtime; what is in `RUNTIMES` is what has a `runtime.py` there."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgeq.backends.portable import intersection
from edgeq.backends.runtime import Runtime, Variant
from edgeq.spec import Artifact, EdgeqError, LatencyReport, OpLatency, Target

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

    from edgeq.backends.timing import Event
    from edgeq.graph.integer import IntegerProgram


def found(places: Iterable[str], package: str) -> dict[str, Runtime]:
    """The runtimes of `package`, whose folder lies at `places`: every folder in it that has a `runtime.py`."""
    names = [entry.name for entry in pkgutil.iter_modules(places) if entry.ispkg]
    modules = [f"{package}.{name}.runtime" for name in names]
    runtimes: list[Runtime] = [
        importlib.import_module(name).RUNTIME for name in modules if importlib.util.find_spec(name)
    ]
    return {runtime.name: runtime for runtime in sorted(runtimes, key=lambda r: r.rank)}


RUNTIMES = found(__path__, __name__)
VARIANTS: dict[str, Variant] = {name: v for runtime in RUNTIMES.values() for name, v in runtime.variants}

Predict = Callable[[Sequence["Tensor"]], tuple["Tensor", ...]]


class Lower(Protocol):
    """QDQ or float program → artefact in `folder`."""

    def __call__(
        self, program: ExportedProgram, folder: Path, *, name: str, layers: Mapping[str, str], **options: str
    ) -> Artifact: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """One runtime: what it computes, how to lower to it, run it on this host and time it.

    profile: artefact and inputs → latency on this host. place: events of an artefact's traced run, wherever it was, → rows
    with its operators' names and layers; None where nothing runs it but this host. benchmark: times it on Android by its
    makers' program; None where there is none. tune: searches schedules on this host
    for the next `lower`; None where there is nothing to search.
    """

    name: str
    target: Target
    lower: Lower
    load: Callable[..., Predict]
    profile: Callable[..., LatencyReport | None]
    place: Callable[[Artifact, Sequence[Event]], list[OpLatency]] | None = None
    benchmark: Callable[..., LatencyReport] | None = None
    tune: Callable[..., None] | None = None


def backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        EdgeqError: there is none of that name.
    """
    runtime = runtime_of(name)

    def part(module: str) -> Any:
        return importlib.import_module(f"edgeq.backends.{runtime}.{module}")

    timing = part("profile")
    place = getattr(timing, "place", None)
    own, known = part("target").TARGET, RUNTIMES[runtime]
    if name not in VARIANTS:
        lower = part("lower")
        benchmark = part("benchmark").benchmark if known.benchmark else None
        tune = lower.tune if known.tunes else None
        return Backend(name, own, lower.lower, part("run").load, timing.profile, place, benchmark, tune)

    def elsewhere(*args: Any, **options: Any) -> Any:
        raise EdgeqError(runs_here(name).removeprefix("no: "))

    return Backend(name, own, functools.partial(part("lower").lower, target=name), elsewhere, elsewhere, place)


def differing(name: str, path: Path, program: IntegerProgram) -> list[str]:
    """What an artefact of backend `name` holds otherwise than `program`, in a few words each; empty where nothing.

    A library for Hexagon has its constants as plain data of C, without a mark by which to find them, and is not read.
    """
    if path.suffix == ".elf":
        return []
    from edgeq.backends.constants import differences

    read = importlib.import_module(f"edgeq.backends.{runtime_of(name)}.constants").stored
    try:
        held = read(path)
    except EdgeqError:
        raise
    except Exception as error:  # bytes that make no file of its kind, in whatever way
        return [f"it cannot be read ({type(error).__name__})"]
    return list(differences(held, program, backend(name).target))


def engine(name: str) -> Path:
    """The file that runs artefacts of backend `name` by NumPy and the runtime alone, where edgeq is not."""
    return Path(__path__[0]) / runtime_of(name) / "engine.py"


def runtime_of(name: str) -> str:
    """The runtime behind backend `name`.

    Raises:
        EdgeqError: there is no backend of that name.
    """
    if name in VARIANTS:
        return VARIANTS[name].runtime
    if name not in RUNTIMES:
        raise EdgeqError(f"unknown backend {name!r}: choose from {', '.join((*RUNTIMES, *VARIANTS))}")
    return name


def installed(name: str) -> bool:
    """Whether the package behind backend `name` is there, found without importing it."""
    return importlib.util.find_spec(RUNTIMES[runtime_of(name)].module) is not None


def runs_here(name: str) -> str:
    """Where an artefact of this backend runs when the device is `host`, in words."""
    if name in VARIANTS:
        return f"no: {name} is compiled for other machines than this one: add --device, as {VARIANTS[name].devices}"
    runtime = RUNTIMES[runtime_of(name)]
    return runtime.stand_in if runtime.apple and sys.platform != "darwin" else "yes"


def versions() -> dict[str, str]:
    """Versions of edgeq, torch and what is installed of the packages that make and run artefacts."""
    from edgeq.graph.store import versions

    return versions(name for runtime in RUNTIMES.values() for name in (runtime.runner, runtime.package) if name)


def title(name: str) -> str:
    """A runtime's name as its makers write it; a variant's own."""
    return RUNTIMES[name].title if name in RUNTIMES else name


def target(name: str) -> Target:
    """The target called `name`: `portable`, `simulated` or one runtime's own.

    Raises:
        EdgeqError: there is none of that name.
    """
    if name == "simulated":
        from edgeq.backends.simulated import TARGET

        return TARGET
    if name != "portable" and name not in RUNTIMES:
        raise EdgeqError(f"unknown target {name!r}: choose from portable, simulated, {', '.join(RUNTIMES)}")
    names = RUNTIMES if name == "portable" else (name,)
    own: tuple[Target, ...] = tuple(importlib.import_module(f"edgeq.backends.{n}.target").TARGET for n in names)
    return intersection(own) if name == "portable" else own[0]
