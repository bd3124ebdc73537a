"""The quantized model as an object and as a folder: plan, numbers, weights, program, manifest, golden vectors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
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

from edgeq.graph.capture import unlift
from edgeq.graph.integer import IntegerProgram, read
from edgeq.graph.shortcut import shortcut
from edgeq.graph.simulate import simulate
from edgeq.spec import EdgeqError, QParams, QuantPlan, TensorInfo

MANIFEST = "manifest.json"
FORMAT = 1
FILES = (
    MANIFEST, "plan.json", "qparams.json", "weights.safetensors", "program.pt2", "float.pt2", "golden.safetensors",
)  # fmt: skip


@dataclass
class QuantizedModel:
    """One calibrated program, the same for every runtime.

    program: QDQ ExportedProgram. twin: the float network it came from. labels: node name → layer key, of `program`;
    twin_labels those of `twin`. qparams: tensor key (`input x` or the layer that computes it) → scale and zero point.
    islands: layer key → why it stays in float. folder: where it is saved; None until then.
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
    preprocessing: dict[str, Any] | None = None
    folder: Path | None = None

    @cached_property
    def integers(self) -> IntegerProgram:
        """The program's integer operators and float islands."""
        return read(self.program, self.labels)

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

    def save(self, folder: Path) -> None:
        """Write everything to `folder`, whole or not at all; an older model there is replaced.

        Raises:
            EdgeqError: `folder` holds something that is no quantized model.
        """
        with replacing(folder) as part:
            self._write(part)
        self.folder = folder

    def _write(self, part: Path) -> None:
        plan_text = dump_plan(self.plan)
        (part / "plan.json").write_text(plan_text)
        numbers = {key: dataclasses.asdict(q) for key, q in self.qparams.items()}
        plan_hash = hashlib.sha256(plan_text.encode()).hexdigest()
        qparams = {"plan_sha256": plan_hash, "tensors": numbers}
        (part / "qparams.json").write_text(json.dumps(qparams, indent=1) + "\n")
        constants = {k: v.detach().contiguous() for k, v in self.program.state_dict.items()}
        constants |= {k: v.detach().contiguous() for k, v in self.program.constants.items() if isinstance(v, Tensor)}
        save_file({k: v.clone() for k, v in constants.items()}, part / "weights.safetensors")
        for name, program in (("program.pt2", self.program), ("float.pt2", self.twin)):
            for node in program.graph.nodes:  # marks torch leaves on nodes, others after other work in this process
                node.meta.pop("custom", None)
            torch.export.save(program, part / name)
        golden = {f"input_{i}": t.contiguous() for i, t in enumerate(self.golden)}
        golden |= {f"output_{i}": t.contiguous().clone() for i, t in enumerate(self.qdq(self.golden))}
        save_file(golden, part / "golden.safetensors")
        manifest = {
            "format": FORMAT,
            "name": self.name,
            "task": self.task,
            "plan_sha256": plan_hash,
            "weights_sha256": _hash(part / "weights.safetensors"),
            "program_sha256": _hash(part / "program.pt2"),
            "versions": versions(),
            "inputs": [dataclasses.asdict(i) for i in self.inputs],
            "outputs": [dataclasses.asdict(o) for o in self.outputs],
            "preprocessing": self.preprocessing,
            "islands": self.islands,
            "labels": self.labels,
            "twin_labels": self.twin_labels,
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        for path in part.iterdir():  # safetensors lets nobody but the owner read its files
            path.chmod((part / MANIFEST).stat().st_mode)


def load(folder: str | Path) -> QuantizedModel:
    """Read a folder written by `edgeq quantize`.

    Raises:
        EdgeqError: it is no such folder, or one of its files is missing, truncated or does not belong to the others.
    """
    root = Path(folder)
    manifest = read_json(
        root / MANIFEST, f"{root}: not a quantized model (no {MANIFEST}); make one with edgeq quantize"
    )
    if manifest.get("format") != FORMAT:
        raise EdgeqError(
            f"{root}: written by another version of edgeq (format {manifest.get('format')}); quantize again"
        )
    plan = load_plan(root / "plan.json")
    numbers = read_json(root / "qparams.json", f"{root / 'qparams.json'}: missing; quantize again")
    if hashlib.sha256(dump_plan(plan).encode()).hexdigest() != numbers["plan_sha256"]:
        raise EdgeqError(
            f"{root / 'plan.json'}: edited since it was calibrated; run edgeq quantize TASK.py --plan {root / 'plan.json'}"
        )
    weights = root / "weights.safetensors"
    if not weights.is_file() or _hash(weights) != manifest.get("weights_sha256"):
        raise EdgeqError(f"{weights}: not the weights this model was saved with; quantize again")
    program = load_program(root / "program.pt2")
    if _hash(root / "program.pt2") != manifest.get("program_sha256"):
        raise EdgeqError(f"{root / 'program.pt2'}: not the program this model was saved with; quantize again")
    golden = _tensors(root / "golden.safetensors")
    return QuantizedModel(
        name=manifest["name"],
        plan=plan,
        program=program,
        twin=load_program(root / "float.pt2"),
        inputs=tuple(_info(i) for i in manifest["inputs"]),
        outputs=tuple(_info(o) for o in manifest["outputs"]),
        qparams={key: _qparams(q) for key, q in numbers["tensors"].items()},
        labels=manifest["labels"],
        twin_labels=manifest["twin_labels"],
        islands=manifest["islands"],
        golden=tuple(golden[f"input_{i}"] for i in range(len(manifest["inputs"]))),
        task=manifest["task"],
        preprocessing=manifest["preprocessing"],
        folder=root,
    )


def load_program(path: Path) -> ExportedProgram:
    """Read a .pt2 file.

    Raises:
        EdgeqError: the file is missing, truncated or no exported program.
    """
    if not path.is_file():
        raise EdgeqError(f"{path}: missing; quantize again")
    from edgeq.graph.quiet import quiet

    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:
        raise EdgeqError(f"{path}: truncated or not a torch.export program; quantize again") from error


def dump_plan(plan: QuantPlan) -> str:
    """plan.json: one line a layer, for people to edit."""
    return json.dumps(dataclasses.asdict(plan), indent=1) + "\n"


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
    try:
        for name in ("target", "recipe"):
            if not isinstance(raw[name], str):
                raise EdgeqError(f"{path}: {name} is {raw[name]!r}: a plan has one, as a string")
        layers = {str(k): str(v) for k, v in raw["layers"].items()}
        return QuantPlan(raw["target"], raw["recipe"], layers)
    except (KeyError, AttributeError, TypeError) as error:
        raise EdgeqError(
            f"{path}: a plan has target, recipe and layers (layer → precision); {error} is missing"
        ) from error


@contextmanager
def replacing(folder: Path, marker: str = MANIFEST, what: str = "quantized model") -> Iterator[Path]:
    """A fresh folder to fill; when the body ends well it takes the place of `folder`, else it is removed.

    Raises:
        EdgeqError: see `check_replaceable`.
    """
    check_replaceable(folder, marker, what)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    old = part.with_name(f"{part.name}.old")
    try:
        yield part
        part.chmod(0o755)
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    except BaseException:  # Ctrl-C between the two renames too
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


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
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(dumps(content) + "\n")
    part.rename(path)


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


def versions() -> dict[str, str]:
    """Versions of edgeq, torch and every runtime that is installed."""
    names = ("edgeq", "torch", "ai-edge-litert", "litert-torch", "executorch", "coremltools", "apache-tvm")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(module: GraphModule, inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
    if isinstance(inputs, Tensor):  # one alone, which unpacking would take apart along its first axis
        inputs = (inputs,)
    with torch.no_grad():
        outputs: tuple[Tensor, ...] = module(*inputs)
    return outputs


def read_json(path: Path, missing: str) -> Any:
    """Read JSON; EdgeqError(`missing`) where there is no file, and one naming the place where it is broken."""
    if not path.is_file():
        raise EdgeqError(missing)
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise EdgeqError(f"{path}: not valid JSON ({error})") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        loaded: dict[str, Tensor] = load_file(path)
        return loaded
    except Exception as error:
        raise EdgeqError(f"{path}: missing or truncated; quantize again") from error


def _qparams(raw: dict[str, Any]) -> QParams:
    return QParams(tuple(raw["scale"]), tuple(raw["zero_point"]), raw["qmin"], raw["qmax"], raw["axis"])


def _info(raw: dict[str, Any]) -> TensorInfo:
    qparams = _qparams(raw["qparams"]) if raw["qparams"] else None
    return TensorInfo(raw["name"], tuple(raw["shape"]), raw["dtype"], qparams)
