"""The quantized model: plan, numbers, weights, program, golden vectors; saved and loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from edgeq.graph.capture import unlift
from edgeq.graph.integer import IntegerProgram, read
from edgeq.graph.ops import operator_name
from edgeq.graph.ordered import ordered
from edgeq.graph.rules import Said, broken
from edgeq.graph.shortcut import read_by_outputs, shortcut
from edgeq.graph.simulate import simulate
from edgeq.graph.store import (
    DISTILLED,
    FILES,
    FORMAT,
    MANIFEST,
    SCHEMA,
    Manifest,
    hash_of,
    read_manifest,
    replacing,
    unchanged,
    versions,
    wrong_numbers,
)
from edgeq.graph.work import Layer, layers
from edgeq.schema import fit
from edgeq.schema import load as read_json
from edgeq.schema import read as read_as
from edgeq.spec import EdgeqError, QParams, QuantPlan, TensorInfo

PLAN_SCHEMA = 2  # 1 knew recipes by name alone; such a plan still says what it means


@dataclass(frozen=True, slots=True)
class PlanFile:
    """plan.json; a person's may leave out schema, default, steps and data. Fields as those of QuantPlan."""

    target: str
    recipe: str
    layers: dict[str, str]
    schema: int = PLAN_SCHEMA
    default: str | None = None
    steps: tuple[dict[str, Any], ...] = ()
    data: dict[str, Any] | None = None


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
    exactly a runtime computes them. data: where its calibration data came from (`source`, its options); None: there was none.
    distilled: the batches, flat, where they were made up and so nobody's secret. folder: where it is saved; None until then.
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
    data: dict[str, Any] | None = None
    distilled: tuple[tuple[Tensor, ...], ...] = ()
    folder: Path | None = None

    @cached_property
    def integers(self) -> IntegerProgram:
        """The program's integer operators and float islands."""
        return read(self.program, self.labels)

    @property
    def said(self) -> Said:
        """What is said about the program beside it."""
        return Said(self.plan.layers, self.islands, self.labels)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The network's own layers as the program computes them."""
        return layers(self.integers, self.labels)

    @cached_property
    def operators(self) -> dict[str, str]:
        """Layer key → the name of its operator."""
        named = {self.twin_labels[n.name]: n for n in self.twin.graph.nodes if n.name in self.twin_labels}
        return {key: operator_name(node) for key, node in named.items()}

    @cached_property
    def _qdq(self) -> GraphModule:
        return shortcut(unlift(self.program))

    @cached_property
    def _float(self) -> GraphModule:
        return unlift(self.twin)

    def simulate(
        self, inputs: Sequence[Tensor] | Tensor, arithmetic: str, tables: Mapping[str, Tensor] = MappingProxyType({})
    ) -> tuple[Tensor, ...]:
        """Outputs on flat `inputs` with exact integer sums and the rounding of kernel set `arithmetic`; tables: see
        edgeq.graph.simulate."""
        batch = (inputs,) if isinstance(inputs, Tensor) else inputs
        return simulate(self.integers, batch, arithmetic, tables=tables)

    def qdq(self, inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
        """Outputs of the QDQ program itself, in float32: quantization simulated, kernels not.

        Raises:
            EdgeqError: `inputs` are not of the network's shapes.
        """
        return _run(self._qdq, inputs)

    def float(self, inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
        """Outputs of the float network the program came from; raises as `qdq` does."""
        return _run(self._float, inputs)

    def read_by_outputs(self, inputs: Sequence[Tensor]) -> Sequence[Any]:
        """For each output the largest finite value, without its sign, that the operator behind it reads in the float network.

        What is left of large values that cancel is their rounding.
        """
        return read_by_outputs(self._float, inputs)

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
        if self.distilled:
            stacked = {f"input_{i}": torch.stack(each) for i, each in enumerate(zip(*self.distilled, strict=True))}
            save_file(stacked, part / DISTILLED)
        manifest = Manifest(
            format=FORMAT,
            name=self.name,
            task=self.task,
            task_sha256=self.task_sha256,
            files={
                name: hash_of(part / name)
                for name in (*FILES, DISTILLED)
                if name != MANIFEST and (part / name).is_file()
            },
            artifacts={},
            versions=made_by,
            inputs=self.inputs,
            outputs=self.outputs,
            preprocessing=self.preprocessing,
            islands=self.islands,
            labels=self.labels,
            twin_labels=self.twin_labels,
            far=self.far,
            data=self.data,
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
    model = QuantizedModel(
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
        data=manifest.data,
        distilled=_distilled(root, manifest),
        folder=root.absolute(),  # a task file may change the current folder
    )
    if illegal := broken(model.integers, model.said):
        raise EdgeqError(f"{root / 'program.pt2'}: {illegal}; quantize again")
    return model


def _distilled(root: Path, manifest: Manifest) -> tuple[tuple[Tensor, ...], ...]:
    """The batches that were made up for a model, where they were.

    Raises:
        EdgeqError: they are not of its inputs' shapes.
    """
    if DISTILLED not in manifest.files:
        return ()
    found = _tensors(root / DISTILLED)
    for i, info in enumerate(manifest.inputs):
        held = found.get(f"input_{i}")
        if held is None or tuple(held.shape[1:]) != info.shape or str(held.dtype) != f"torch.{info.dtype}":
            raise EdgeqError(f"{root / DISTILLED}: has no batches of input {info.name!r}; quantize again")
    return tuple(zip(*(found[f"input_{i}"].unbind() for i in range(len(manifest.inputs))), strict=True))


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
    """plan.json: one line a step, one a layer, for people to edit."""
    told = {"schema": PLAN_SCHEMA, **dataclasses.asdict(plan)}
    for name in ("default", "data"):
        if told[name] is None:
            told.pop(name)
    steps = ",\n".join("  " + json.dumps(step) for step in told.pop("steps"))
    layers = told.pop("layers")
    head = json.dumps(told, indent=1).removesuffix("\n}")
    lines = json.dumps(layers, indent=1).replace("\n", "\n ")
    return f'{head},\n "steps": [\n{steps}\n ],\n "layers": {lines}\n}}\n'


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
    if raw.get("schema", PLAN_SCHEMA) not in (1, PLAN_SCHEMA):
        raise EdgeqError(f"{path}: written by another version of edgeq (schema {raw['schema']}); quantize again")
    plan = fit(raw, PlanFile, path)
    return QuantPlan(plan.target, plan.recipe, plan.layers, plan.default, plan.steps, plan.data)


def _run(module: GraphModule, inputs: Sequence[Tensor] | Tensor) -> tuple[Tensor, ...]:
    if isinstance(inputs, Tensor):  # one alone, which unpacking would take apart along its first axis
        inputs = (inputs,)
    wanted = [tuple(n.meta["val"].shape) for n in module.graph.nodes if n.op == "placeholder"]
    if [tuple(x.shape) for x in inputs] != wanted:
        raise EdgeqError(
            f"this network takes inputs of shape {', '.join(map(str, wanted))}, and was given "
            f"{', '.join(str(tuple(x.shape)) for x in inputs) or 'none'}"
        )
    with torch.no_grad(), ordered():
        outputs: tuple[Tensor, ...] = module(*inputs)
    return outputs


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        loaded: dict[str, Tensor] = load_file(path)
        return loaded
    except Exception as error:
        raise EdgeqError(f"{path}: missing or truncated; quantize again") from error
