"""What the rest of edgeq knows of a runtime. Each one's folder says it in its `runtime.py`, which imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variant:
    """Artefacts of a runtime compiled for another machine than this one; they lie in a folder of their own name.

    machine: as an ABI begins. features: what the processor must have, by their names in /proc/cpuinfo. devices: examples.
    """

    runtime: str
    machine: str
    features: tuple[str, ...]
    devices: str


@dataclass(frozen=True, slots=True)
class Served:
    """Servers that run a runtime's artefacts; its folder's `server.py` opens a session with one.

    kind, where: a device of this kind is called `kind:where`. start: the command that starts one, with where it is run.
    """

    kind: str
    where: str
    start: str


@dataclass(frozen=True, slots=True)
class Runtime:
    """One runtime.

    name: its folder's, and its extra's. title: as its makers write it. rank: its place in tables. module, package: what
    lowering imports, and what pip calls it; runner: the package that runs artefacts, where another one makes them.
    io: choices of the types of inputs and outputs, the first by default; none where they are the program's own.
    options: what its `lower` takes beside the program: the user's `outputs`, the task's `preprocessing`, `channels_last`.
    variants: backends for other machines, by name. compiled: artefacts are code for one machine. apple: they run on Apple's
    systems alone; stand_in: what runs them on other hosts, in words. half: floats in them are float16. server: servers of
    its own that run them. benchmark: its makers' program times them on Android (`benchmark.py`).
    tunes: schedules can be searched on this host before lowering.
    """

    name: str
    title: str
    rank: int
    module: str
    package: str
    runner: str = ""
    io: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()
    variants: tuple[tuple[str, Variant], ...] = ()
    compiled: bool = False
    apple: bool = False
    stand_in: str = ""
    half: bool = False
    server: Served | None = None
    benchmark: bool = False
    tunes: bool = False
