"""The quantized model as an object and as a folder: plan, numbers, weights, program, manifest, golden vectors."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgeq import whole
from edgeq.graph.capture import unlift
from edgeq.graph.integer import IntegerProgram, read
from edgeq.graph.ordered import ordered
from edgeq.graph.shortcut import shortcut
from edgeq.graph.simulate import simulate
from edgeq.graph.work import Layer, layers
from edgeq.schema import fit
from edgeq.schema import load as read_json
from edgeq.schema import read as read_as
from edgeq.spec import EdgeqError, EdgeqWarning, QParams, QuantPlan, TensorInfo

MANIFEST = "manifest.json"
FORMAT = 2
SCHEMA = 1  # of the other files; each says so
FILES = (
    MANIFEST, "plan.json", "qparams.json", "weights.safetensors", "program.pt2", "float.pt2", "golden.safetensors",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Manifest:
    """manifest.json: what the folder holds, and the hash of every file in it.

    task: the file it was quantized from, with its hash then. files: those of `quantize`. artifacts: those of `export`, by
    path in the folder; an .mlpackage's is the hash of all it holds.
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


@dataclass(frozen=True, slots=True)
class PlanFile:
    """plan.json; a person's may leave the schema out, and target and recipe only where it says so."""

    target: str
    recipe: str
    layers: dict[str, str]
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Numbers:
    """qparams.json: tensor key → scale and zero point, and the plan they were resolved for."""

    plan_sha256: str
    tensors: dict[str, QParams]
    schema: int = SCHEMA


@dataclass
class QuantizedModel:
    """One calibrated program, the same for every runtime.

    program: QDQ ExportedProgram. twin: the float network it came from. labels: node name → layer key, of `program`;
    twin_labels those of `twin`. qparams: tensor key (`input x` or the layer that computes it) → scale and zero point.
    islands: layer key → why it stays in float. far: sentences about outputs that are far from the float network's, however
    exactly a runtime computes them. folder: where it is saved; None until then.
    """

    name: str
    plan: QuantPlan
    program: ExportedProgram
    twin: ExportedProgram
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    qparams: dict[str, QParams]
    labels: dict[str, str]
    twin_labels: dict[str, str]
    islands: dict[str, str]
    golden: tuple[Tensor, ...]
    task: str | None = None
    task_sha256: str | None = None
    preprocessing: dict[str, Any] | None = None
    far: tuple[str, ...] = ()
    folder: Path | None = None

    @cached_property
    def integers(self) -> IntegerProgram:
        """The program's integer operators and float islands."""
        return read(self.program, self.labels)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The network's own layers as the program computes them."""
        return layers(self.integers, self.labels)

    @cached_property
    def _qdq(self) -> GraphModule:
        return shortcut(unlift(self.program))

    @cached_property
    def _float(self) -> GraphModule:
        return unlift(self.twin)

    def simulate(self, inputs: Sequence[Tensor] | Tensor, arithmetic: str) -> tuple[Tensor, ...]:
        """Outputs on flat `inputs` with exact integer sums and the rounding of kernel set `arithmetic`."""
        return simulate(self.integers, (inputs,) if isinstance(inputs, Tensor) else inputs, arithmetic)

    def qdq(self, inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
        """Outputs of the QDQ program itself, in float32: quantization simulated, kernels not."""
        return _run(self._qdq, inputs)

    def float(self, inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
        """Outputs of the float network the program came from."""
        return _run(self._float, inputs)

    def save(self, folder: Path, made_by: Mapping[str, str] | None = None) -> None:
        """Write everything to `folder`, whole or not at all; an older model there is replaced.

        made_by: versions for the manifest; edgeq's and torch's where not given.

        Raises:
            EdgeqError: `folder` holds something that is no quantized model.
        """
        with replacing(folder) as part:
            self._write(part, versions() if made_by is None else dict(made_by))
        self.folder = folder

    def _write(self, part: Path, made_by: dict[str, str]) -> None:
        plan_text = dump_plan(self.plan)
        (part / "plan.json").write_text(plan_text)
        plan_hash = hashlib.sha256(plan_text.encode()).hexdigest()
        numbers = dataclasses.asdict(Numbers(plan_hash, self.qparams))
        (part / "qparams.json").write_text(json.dumps(numbers, indent=1) + "\n")
        constants = {k: v.detach().contiguous() for k, v in self.program.state_dict.items()}
        constants |= {k: v.detach().contiguous() for k, v in self.program.constants.items() if isinstance(v, Tensor)}
        save_file({k: v.clone() for k, v in constants.items()}, part / "weights.safetensors")
        for name, program in (("program.pt2", self.program), ("float.pt2", self.twin)):
            for node in program.graph.nodes:  # marks torch leaves on nodes, others after other work in this process
                node.meta.pop("custom", None)
            written = io.BytesIO()  # torch's own file writer ends the process where the disk is full
            torch.export.save(program, written)
            (part / name).write_bytes(written.getbuffer())
        golden = {f"input_{i}": t.contiguous() for i, t in enumerate(self.golden)}
        golden |= {f"output_{i}": t.contiguous().clone() for i, t in enumerate(self.qdq(self.golden))}
        save_file(golden, part / "golden.safetensors")
        manifest = Manifest(
            format=FORMAT,
            name=self.name,
            task=self.task,
            task_sha256=self.task_sha256,
            files={name: hash_of(part / name) for name in FILES if name != MANIFEST},
            artifacts={},
            versions=made_by,
            inputs=self.inputs,
            outputs=self.outputs,
            preprocessing=self.preprocessing,
            islands=self.islands,
            labels=self.labels,
            twin_labels=self.twin_labels,
            far=self.far,
        )
        (part / MANIFEST).write_text(json.dumps(dataclasses.asdict(manifest), indent=1) + "\n")
        for path in part.iterdir():  # safetensors lets nobody but the owner read its files
            path.chmod((part / MANIFEST).stat().st_mode)


def load(folder: str | Path) -> QuantizedModel:
    """Read a folder written by `edgeq quantize`.

    Raises:
        EdgeqError: it is no such folder, or one of its files is missing, truncated or does not belong to the others.
    """
    root = Path(folder)
    manifest = read_manifest(root)
    for name, wanted in manifest.files.items():
        unchanged(root / name, wanted)
    plan = load_plan(root / "plan.json")
    numbers = read_as(root / "qparams.json", Numbers, f"{root / 'qparams.json'}: missing; quantize again")
    if hashlib.sha256(dump_plan(plan).encode()).hexdigest() != numbers.plan_sha256:
        raise EdgeqError(f"{root / 'qparams.json'}: its numbers were resolved for another plan.json; quantize again")
    for key, q in numbers.tensors.items():
        if wrong := wrong_numbers(q):
            raise EdgeqError(f"{root / 'qparams.json'}: {key}: {wrong}; quantize again")
    for info in (*manifest.inputs, *manifest.outputs):
        if info.qparams is not None and info.qparams not in numbers.tensors.values():
            raise EdgeqError(f"{root / MANIFEST}: {info.name} has other numbers than qparams.json; quantize again")
    golden = _tensors(root / "golden.safetensors")
    if lacking := [i for i in range(len(manifest.inputs)) if f"input_{i}" not in golden]:
        raise EdgeqError(f"{root / 'golden.safetensors'}: has no input_{lacking[0]}; quantize again")
    for i, info in enumerate(manifest.inputs):
        if tuple(golden[f"input_{i}"].shape) != info.shape:
            raise EdgeqError(f"{root / MANIFEST}: {info.name} has another shape than the golden input; quantize again")
    return QuantizedModel(
        name=manifest.name,
        plan=plan,
        program=load_program(root / "program.pt2"),
        twin=load_program(root / "float.pt2"),
        inputs=manifest.inputs,
        outputs=manifest.outputs,
        qparams=numbers.tensors,
        labels=manifest.labels,
        twin_labels=manifest.twin_labels,
        islands=manifest.islands,
        golden=tuple(golden[f"input_{i}"] for i in range(len(manifest.inputs))),
        task=manifest.task,
        task_sha256=manifest.task_sha256,
        preprocessing=manifest.preprocessing,
        far=manifest.far,
        folder=root.absolute(),  # a task file may change the current folder
    )


def read_manifest(root: Path) -> Manifest:
    """manifest.json of a model folder.

    Raises:
        EdgeqError: it is no such folder, was written by another version of edgeq, or the file was changed.
    """
    path = root / MANIFEST
    raw = read_json(path, f"{root}: not a quantized model (no {MANIFEST}); make one with edgeq quantize")
    written = raw.get("format") if isinstance(raw, dict) else None
    if written != FORMAT:
        raise EdgeqError(
            f"{root}: written by another version of edgeq (format {written}, not {FORMAT}): "
            "run edgeq quantize TASK.py again with its task file"
        )
    manifest = fit(raw, Manifest, path)
    if lacking := [name for name in FILES if name != MANIFEST and name not in manifest.files]:
        raise EdgeqError(f"{path}: has no hash of {lacking[0]}; quantize again")
    for name in (*manifest.files, *manifest.artifacts):
        plain_name(name, path)
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


def load_program(path: Path) -> ExportedProgram:
    """Read a .pt2 file.

    Raises:
        EdgeqError: the file is missing, truncated or no exported program.
    """
    if not path.is_file():
        raise EdgeqError(f"{path}: missing; quantize again")
    from edgeq.graph.archive import Unsound, check
    from edgeq.graph.quiet import quiet

    try:
        with quiet():
            check(path)
            return torch.export.load(path)
    except Unsound as error:
        raise EdgeqError(f"{path}: not loaded, as it holds more than tensors and operators ({error})") from error
    except Exception as error:
        raise EdgeqError(f"{path}: truncated or not a torch.export program; quantize again") from error


def dump_plan(plan: QuantPlan) -> str:
    """plan.json: one line a layer, for people to edit."""
    return json.dumps({"schema": SCHEMA, **dataclasses.asdict(plan)}, indent=1) + "\n"


def load_plan(path: Path) -> QuantPlan:
    """Read plan.json.

    Raises:
        EdgeqError: the file is missing, no JSON, or lacks target, recipe or layers.
    """
    raw = read_json(path, f"{path}: no such plan; edgeq quantize writes one to edit")
    if not isinstance(raw, dict) or not isinstance(raw.get("layers", {}), dict):
        raise EdgeqError(
            f"{path}: a plan is an object with target, recipe and layers (layer → precision); quantize again"
        )
    for name in ("target", "recipe", "layers"):
        if name not in raw:
            raise EdgeqError(f"{path}: a plan has target, recipe and layers (layer → precision); {name!r} is missing")
        if name != "layers" and not isinstance(raw[name], str):
            raise EdgeqError(f"{path}: {name} is {raw[name]!r}: a plan has one, as a string")
    if raw.get("schema", SCHEMA) != SCHEMA:
        raise EdgeqError(f"{path}: written by another version of edgeq (schema {raw['schema']}); quantize again")
    plan = fit(raw, PlanFile, path)
    return QuantPlan(plan.target, plan.recipe, plan.layers)


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
    return sorted(p.name for p in folder.iterdir() if p.name not in FILES) if folder.is_dir() else []


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


def _run(module: GraphModule, inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
    if isinstance(inputs, Tensor):  # one alone, which unpacking would take apart along its first axis
        inputs = (inputs,)
    with torch.no_grad(), ordered():
        outputs: tuple[Tensor, ...] = module(*inputs)
    return outputs


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        loaded: dict[str, Tensor] = load_file(path)
        return loaded
    except Exception as error:
        raise EdgeqError(f"{path}: missing or truncated; quantize again") from error
