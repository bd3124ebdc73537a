"""The model folder: its manifest, files that are whole and unchanged, results beside them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgeq import whole
from edgeq.schema import fit
from edgeq.schema import load as read_json
from edgeq.spec import EdgeqError, EdgeqWarning, QParams, TensorInfo

MANIFEST = "manifest.json"
FORMAT = 3
SCHEMA = 1  # of the other files; each says so
FILES = (
    MANIFEST, "plan.json", "qparams.json", "weights.safetensors", "program.pt2", "float.pt2", "golden.safetensors",
)  # fmt: skip
DISTILLED = "distilled.safetensors"  # beside them where calibration data was made up


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json: what the folder holds, and the hash of every file in it.

    task: the file it was quantized from, with its hash then. files: those of `quantize`. artifacts: those of `export`, by
    path in the folder; an .mlpackage's is the hash of all it holds. data: where calibration data came from.
    """

    format: int
    name: str
    task: str | None
    task_sha256: str | None
    files: dict[str, str]
    artifacts: dict[str, str]
    versions: dict[str, str]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    preprocessing: dict[str, Any] | None
    islands: dict[str, str]
    labels: dict[str, str]
    twin_labels: dict[str, str]
    far: tuple[str, ...] = ()
    data: dict[str, Any] | None = None


def read_manifest(root: Path) -> Manifest:
    """manifest.json of a model folder.

    Raises:
        EdgeqError: it is no such folder, was written by another version of edgeq, or the file was changed.
    """
    path = root / MANIFEST
    raw = read_json(path, f"{root}: not a quantized model (no {MANIFEST}); make one with edgeq quantize")
    written = raw.get("format") if isinstance(raw, dict) else None
    if written != FORMAT:
        task = raw.get("task") if isinstance(raw, dict) else None
        raise EdgeqError(
            f"{root}: written by another version of edgeq (format {written}, not {FORMAT}): "
            f"run edgeq quantize {task if isinstance(task, str) else 'TASK.py'} -o {root} again"
        )
    manifest = fit(raw, Manifest, path)
    if lacking := [name for name in FILES if name != MANIFEST and name not in manifest.files]:
        raise EdgeqError(f"{path}: has no hash of {lacking[0]}; quantize again")
    for name in (*manifest.files, *manifest.artifacts):
        plain_name(name, path)
    told = manifest.data or {"source": "calibration"}
    if not isinstance(told.get("source"), str) or (
        told["source"] == "arrays" and not isinstance(told.get("path"), str)
    ):
        raise EdgeqError(f"{path}: data does not say where calibration data came from; quantize again")
    for info in (*manifest.inputs, *manifest.outputs):
        if info.qparams is not None and (wrong := wrong_numbers(info.qparams)):
            raise EdgeqError(f"{path}: {info.name}: {wrong}; quantize again")
    return manifest


def record(root: Path, made: Sequence[Path]) -> None:
    """Put the hashes of what was written into a model folder into its manifest; exports side by side wait for each other."""
    with locked(root):
        manifest = read_manifest(root)
        told = {path.relative_to(root).as_posix(): hash_of(path) for path in made}
        known = {name: value for name, value in manifest.artifacts.items() if (root / name).exists()}
        new = dataclasses.replace(manifest, artifacts={**known, **told})
        write_json(root / MANIFEST, dataclasses.asdict(new))


def keep_result(root: Path, name: str, content: Any) -> None:
    """Write what a verb found into a model folder, with its hash; where nothing can be written there, say so and go on."""
    try:
        write_json(root / name, content)
        record(root, [root / name])
    except OSError as error:
        warnings.warn(
            f"{root / name} cannot be written ({error.strerror}): what was found is shown, and not kept",
            EdgeqWarning,
            stacklevel=2,
        )


def result(root: Path, name: str) -> Any:
    """What a verb found earlier and kept in a model folder; None where there is none.

    Raises:
        EdgeqError: the file was changed since.
    """
    if not (root / name).is_file():
        return None
    verb = name.split(".")[0]
    recorded(root, root / name, f"run edgeq {verb} {root} again")
    return read_json(root / name, "")


def recorded(root: Path, path: Path, remedy: str) -> Path:
    """`path`, a file or package that `export` wrote into the folder, if it is what it was then.

    Raises:
        EdgeqError: it is missing, leads out of the folder, or was changed; `remedy` says what to run.
    """
    name = path.relative_to(root).as_posix()
    if not path.exists():
        raise EdgeqError(f"{path}: missing; {remedy}")
    if not path.resolve().is_relative_to(root.resolve()) or any(p.is_symlink() for p in path.rglob("*")):
        raise EdgeqError(f"{path}: leads out of the model folder, and is not read; {remedy}")
    if read_manifest(root).artifacts.get(name) != hash_of(path):
        raise EdgeqError(f"{path}: damaged or changed since edgeq wrote it (its hash is not the manifest's); {remedy}")
    return path


def plain_name(name: str, where: object) -> str:
    """`name` if it is one of a file in a folder, or in a folder of that: no absolute path, no `..`.

    Raises:
        EdgeqError: it is none; `where` says which file names it.
    """
    parts = Path(name).parts
    if (
        not parts
        or Path(name).is_absolute()
        or ".." in parts
        or "\\" in name
        or "\0" in name
        or name != "/".join(parts)
    ):
        raise EdgeqError(f"{where}: names {name!r}, which is no file inside the model folder")
    return name


def unchanged(path: Path, wanted: str) -> None:
    """Raise EdgeqError where a file of `quantize` is missing or another than it was."""
    if not path.is_file():
        raise EdgeqError(f"{path}: missing; quantize again")
    if hash_of(path) == wanted:
        return
    if path.name == "plan.json":
        raise EdgeqError(f"{path}: edited since it was calibrated; run edgeq quantize TASK.py --plan {path}")
    raise EdgeqError(
        f"{path}: truncated or changed since it was saved with this model (its hash is not the manifest's); quantize again"
    )


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Nobody else who asks for the same folder's lock holds it in the body; where the folder cannot be locked, nothing waits."""
    try:
        import fcntl

        handle = os.open(root, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def replacing(folder: Path, marker: str = MANIFEST, what: str = "quantized model") -> Iterator[Path]:
    """A fresh folder to fill; when the body ends well it takes the place of `folder`, else it is removed.

    Raises:
        EdgeqError: see `check_replaceable`.
    """
    check_replaceable(folder, marker, what)
    with whole.folder(folder) as part:
        yield part


def check_replaceable(folder: Path, marker: str = MANIFEST, what: str = "quantized model") -> None:
    """Whether `replacing` may put a new folder in the place of `folder`.

    Raises:
        EdgeqError: `folder` is the current one or around it, or exists and is neither empty nor `what`, which a file
            `marker` in it tells.
    """
    if folder.exists() and not folder.is_dir():
        raise EdgeqError(f"{folder}: is a file; name a folder to write to")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise EdgeqError(
            f"{folder}: the current folder cannot be replaced; name a folder in it, or change to another one"
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / marker).is_file():
        raise EdgeqError(f"{folder}: holds other files and no {what}; name a new folder")


def exports(folder: Path) -> list[str]:
    """Names in a model folder of what other verbs than quantize put there, artefacts and what was found about them."""
    return sorted(p.name for p in folder.iterdir() if p.name not in (*FILES, DISTILLED)) if folder.is_dir() else []


def write_json(path: Path, content: Any) -> None:
    """Write JSON beside `path` and rename, so that a reader never sees half of it."""
    with whole.file(path) as part:
        part.write_text(dumps(content) + "\n")


def dumps(content: Any) -> str:
    """Strict JSON a person can read: indented, a list of numbers in one line."""
    text = json.dumps(plain(content), indent=1, allow_nan=False)
    # a newline inside a bracket is layout: in a string it would be escaped
    return re.sub(r"\[\n[-+.\deE,\s]*\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)


def plain(content: Any) -> Any:
    """`content` with infinite and undefined numbers as None, which strict JSON parsers ask for."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of edgeq, torch and what is installed of `packages`."""
    found = {}
    for name in ("edgeq", "torch", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hash_of(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names."""
    if path.is_dir():
        made = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            made.update(f"{file.relative_to(path).as_posix()}\0{hash_of(file)}\n".encode())
        return made.hexdigest()
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def wrong_numbers(q: QParams) -> str:
    """Why these numbers are none of a quantized tensor; empty where they are."""
    if not q.scale or len(q.scale) != len(q.zero_point):
        return f"{len(q.scale)} scales and {len(q.zero_point)} zero points"
    if not all(0 < s < math.inf for s in q.scale):
        return "a scale that is not above 0"
    if q.axis is not None and not 0 <= q.axis < 8:
        return f"the axis {q.axis}"
    if not q.qmin < q.qmax or not all(q.qmin <= z <= q.qmax for z in q.zero_point):
        return f"a zero point outside {q.qmin} … {q.qmax}"
    return ""
