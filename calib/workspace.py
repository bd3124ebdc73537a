"""Where a long calibration keeps what it has finished, so that the same command goes on where it was interrupted.

A folder `<output>.partial` beside the output: `workspace.json` says for what (a hash of recipe, weights and calibration data),
`step-<key>.safetensors` holds the numbers behind a finished step, `span-<key>.safetensors` a finished span's,
`part-<key>.safetensors` what the running one has so far, `cache/` its activations. A key is a hash of all that decides them: a
span's of its own numbers and of those of all layers before it, so that another precision of the last layer leaves the others.
`data-<key>-<run>.safetensors` are inputs that were distilled, or where that stands.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.fx import Node

from edgeq import whole
from edgeq.calib.spans import Span
from edgeq.calib.twins import Numbers
from edgeq.graph.coded import Coded
from edgeq.graph.numbers import Resolved
from edgeq.schema import fit
from edgeq.spec import EdgeqError

STATE = "workspace.json"
KINDS = ("step", "span", "part")  # of files, before their keys
DISTILLED = "data"  # likewise, of files that no calibration removes
STEPS = "steps "  # before the names of what gradient steps need
EVERY = 10.0  # seconds of work that an interruption may cost


@dataclass(frozen=True, slots=True)
class SpanFile:
    """What a finished span's file says beside its tensors: its errors before and after, and scales of its activations."""

    before: float
    after: float
    scales: dict[str, float]

    def __post_init__(self) -> None:
        if not all(scale > 0 for scale in self.scales.values()):
            raise ValueError("a scale that is not above 0")


@dataclass(frozen=True, slots=True)
class PartFile:
    """What an unfinished span's file says: errors before and after of each learned layer, and gradient steps done."""

    errors: dict[str, tuple[float, float]]
    step: int

    def __post_init__(self) -> None:
        if self.step < 0:
            raise ValueError("fewer than no steps")


class Workspace:
    """Finished work in `folder`; `cache` is an empty folder for activations, gone after the calibration.

    lasts: the folder stays where a calibration is interrupted.
    """

    def __init__(self, folder: Path, cache: Path, *, lasts: bool) -> None:
        """See `workspace`, which makes both folders."""
        self.folder, self.cache, self.lasts = folder, cache, lasts

    def open(self, key: str) -> None:
        """Keep what was finished for the same recipe, weights and data, whose hash is `key`; anything else is removed."""
        state = self.folder / STATE
        if state.is_file() and state.read_bytes() == (json.dumps({"key": key}) + "\n").encode():
            return
        for kind in KINDS:
            for old in self.folder.glob(f"{kind}-*.safetensors"):
                old.unlink()
        _write(state, lambda part: part.write_text(json.dumps({"key": key}) + "\n"))

    def numbers(self, key: str) -> Resolved | None:
        """The numbers behind a finished step; None where it is not finished, or its file is damaged."""
        path = self._path("step", key)
        if not path.is_file():
            return None
        try:
            return Resolved.load(path)
        except Exception:  # in whatever way: the step is done again
            path.unlink(missing_ok=True)
            return None

    def keep(self, key: str, numbers: Resolved) -> None:
        """Store the numbers behind a step."""
        numbers.save(self._path("step", key))

    def load(self, key: str, span: Span, numbers: Numbers) -> tuple[float, float] | None:
        """Put a finished span's numbers into `numbers`; returns its errors before and after, None where it is not finished."""
        path = self._path("span", key)
        if not path.is_file():
            return None
        tensors: dict[str, Tensor]
        try:
            with safe_open(path, framework="pt") as file:
                stored = fit(json.loads(file.metadata()["span"]), SpanFile, path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            errors, scales = (stored.before, stored.after), stored.scales
        except Exception:  # damaged, in whatever way: the span is learned again
            path.unlink(missing_ok=True)
            return None
        for node in span.layers:
            _put(tensors, node, numbers)
        resolved = numbers.resolved
        for key in resolved.activations.keys() & scales.keys():
            resolved.activations[key] = dataclasses.replace(resolved.activations[key], scale=(scales[key],))
        return errors

    def save(self, key: str, span: Span, numbers: Numbers, errors: tuple[float, float]) -> None:
        """Store what a span learned, whole or not at all."""
        inside = {node.name for node in span.nodes}
        scales = {key: q.step for key, q in numbers.resolved.activations.items() if key in inside}
        tensors: dict[str, Tensor] = {}
        for node in span.layers:
            tensors |= _taken(node, numbers)
        about = json.dumps(dataclasses.asdict(SpanFile(*errors, scales)))
        _write(self._path("span", key), lambda part: save_file(tensors, part, metadata={"span": about}))
        self._path("part", key).unlink(missing_ok=True)

    def part(self, key: str, numbers: Numbers) -> Part:
        """What the span has so far, of this run or of one that was interrupted."""
        return Part(self._path("part", key), numbers)

    def _path(self, kind: str, key: str) -> Path:
        return self.folder / f"{kind}-{key[:24]}.safetensors"


class Part:
    """An unfinished span: its first layers' numbers, then where its gradient steps stand.

    state: variables and moments of these steps, behind the first `step` of them; empty before.
    """

    def __init__(self, path: Path, numbers: Numbers) -> None:
        """Read what an interrupted run left; nothing where it left nothing, or where that is damaged."""
        self.path, self.numbers = path, numbers
        self.errors: dict[str, tuple[float, float]] = {}  # of each learned layer, by its key
        self.step, self.state, self.layers = 0, dict[str, Tensor](), dict[str, Tensor]()
        self.saved = time.monotonic()
        if not path.is_file():
            return
        try:
            with safe_open(path, framework="pt") as file:
                stored = fit(json.loads(file.metadata()["part"]), PartFile, path)
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            self.errors, self.step = dict(stored.errors), stored.step
        except Exception:  # in whatever way: all of it is learned again
            path.unlink(missing_ok=True)
            self.errors, self.step = {}, 0
            return
        self.state = {n.removeprefix(STEPS): t for n, t in tensors.items() if n.startswith(STEPS)}
        self.layers = {n: t for n, t in tensors.items() if not n.startswith(STEPS)}

    def known(self, node: Node) -> tuple[float, float] | None:
        """Put a layer's numbers in their place and return its errors before and after; None where it is to be learned."""
        errors = self.errors.get(self.numbers.weighted[node][0])
        if errors is not None:
            _put(self.layers, node, self.numbers)
        return errors

    def add(self, node: Node, errors: tuple[float, float]) -> None:
        """A layer is learned."""
        self.errors[self.numbers.weighted[node][0]] = errors
        self.layers |= _taken(node, self.numbers)
        self._save()

    def stepped(self, step: int, state: Callable[[], dict[str, Tensor]]) -> None:
        """So many gradient steps are done; `state` gives what the next one needs."""
        if time.monotonic() - self.saved >= EVERY:
            self.step, self.state = step, state()
            self._save()

    def _save(self) -> None:
        if time.monotonic() - self.saved < EVERY:
            return
        about = json.dumps(dataclasses.asdict(PartFile(self.errors, self.step)))
        tensors = self.layers | {f"{STEPS}{name}": t.detach().contiguous() for name, t in self.state.items()}
        _write(self.path, lambda part: save_file(tensors, part, metadata={"part": about}))
        self.saved = time.monotonic()


@contextmanager
def workspace(output: Path | None) -> Iterator[Workspace]:
    """A workspace beside `output` (a temporary one where there is none); its cache goes when the body ends, however it
    ends, and so does the rest where nothing was learned.

    Raises:
        EdgeqError: the folder it would use holds something else.
    """
    with TemporaryDirectory(prefix="edgeq-") as temporary:
        folder = Path(temporary) if output is None else beside(output)
        if output is not None:
            _refuse_others(folder)
        cache = folder / "cache"
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            shutil.rmtree(cache, ignore_errors=True)
            (folder / STATE).touch()
            cache.mkdir()
            try:
                yield Workspace(folder, cache, lasts=output is not None)
            finally:
                shutil.rmtree(cache, ignore_errors=True)
                _left(folder)


@contextmanager
def distilling(output: Path | None, key: str) -> Iterator[Callable[[str], Path] | None]:
    """Where made-up batches of all that `key` is a hash of are kept beside `output`, by the name of their run; None: nowhere.

    Raises:
        EdgeqError: as `workspace`.
    """
    if output is None:
        yield None
        return
    folder = beside(output)
    _refuse_others(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        (folder / STATE).touch()
        for old in folder.glob(f"{DISTILLED}-*.safetensors"):
            if not old.name.startswith(f"{DISTILLED}-{key[:24]}-"):
                old.unlink()
        try:
            yield lambda run: folder / f"{DISTILLED}-{key[:24]}-{run}.safetensors"
        finally:
            _left(folder)


def _left(folder: Path) -> None:
    """Remove a workspace that holds nothing to go on from."""
    if not any(any(folder.glob(f"{kind}-*")) for kind in (*KINDS, DISTILLED)):
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_others(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()) and not (folder / STATE).is_file():
        raise EdgeqError(f"{folder}: holds other files; move it away, calibration keeps its unfinished work there")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system lets go with the process.

    Raises:
        EdgeqError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EdgeqError(
                f"{folder}: another edgeq quantize is learning there; wait until it is done, or name another folder with -o"
            ) from None
        yield
    finally:
        os.close(handle)


def beside(output: Path) -> Path:
    """The workspace's folder for a model that will be saved in `output`."""
    return output.with_name(f"{output.name}.partial")


def forget(output: Path) -> None:
    """Remove the workspace beside `output`, if there is one: the result is saved."""
    folder = beside(output)
    if (folder / STATE).is_file():
        shutil.rmtree(folder, ignore_errors=True)


def _taken(node: Node, numbers: Numbers) -> dict[str, Tensor]:
    """A layer's numbers by kind and key."""
    key, _ = numbers.weighted[node]
    coded, bias = numbers.resolved.weights[key], numbers.resolved.biases.get(key)
    found = {f"weight {key}": coded.codes.contiguous(), f"scale {key}": coded.scale.contiguous()}
    return found if bias is None else found | {f"bias {key}": bias.contiguous()}


def _put(tensors: dict[str, Tensor], node: Node, numbers: Numbers) -> None:
    """A layer's numbers from where `_taken` has put them."""
    key, _ = numbers.weighted[node]
    if f"weight {key}" in tensors:
        old = numbers.resolved.weights[key]
        numbers.resolved.weights[key] = Coded(old.grid, tensors[f"weight {key}"], tensors[f"scale {key}"], old.zero)
    if f"bias {key}" in tensors:
        numbers.resolved.biases[key] = tensors[f"bias {key}"]


def _write(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a file beside `path` and rename it, so that an interruption leaves no half of it."""
    with whole.file(path) as part:
        fill(part)
