"""QDQ or float program → a shared library: integer operators as kernels of our own, float islands by TVM's importer."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from edgeq.backends.tvm import boundary, bundle, moves, origins, sums, tuning
from edgeq.backends.tvm.decompositions import rewritten
from edgeq.backends.tvm.floats import schedule_floats
from edgeq.backends.tvm.geometry import geometry
from edgeq.backends.tvm.imported import tvm_package
from edgeq.backends.tvm.indices import from_start
from edgeq.backends.tvm.inspection import placement
from edgeq.backends.tvm.run import use_threads
from edgeq.backends.tvm.schedule import HVX, Machine, host_target, machine
from edgeq.backends.tvm.target import VARIANTS
from edgeq.graph.arithmetic.tvm import MISSING
from edgeq.graph.integer import (
    DEQUANTIZE,
    DEQUANTIZE_WEIGHT,
    QUANTIZE,
    IntegerOp,
    IntegerProgram,
    coded_weight,
    members,
    read,
    tensor_qparams,
    without,
)
from edgeq.graph.kinds import role_of
from edgeq.graph.ops import constant, value
from edgeq.graph.quiet import quiet
from edgeq.spec import Artifact, EdgeqError, OpPlacement, Progress

ARM_COMPILER = "aarch64-linux-gnu-gcc"


def lower(
    program: ExportedProgram,
    folder: Path,
    *,
    name: str = "model",
    layers: Mapping[str, str] = {},
    target: str | Mapping[str, Any] | None = None,
) -> Artifact:
    """Compile `program` to folder/name.so, which holds Relax's bytecode, kernels and weights; for hexagon to name.elf.

    program: static shapes; QDQ or float. layers: node name → layer key, for coverage and profile.
    target: a variant of edgeq.backends.tvm.target or TVM's target description; None is this computer's own processor.
    Coverage rows are read off the kernels as they go to the code generator. Float kernels get the schedules that `tune`
    left in `folder`.

    Raises:
        EdgeqError: TVM is missing, cannot take an operator, or there is no compiler to link with for the target.
    """
    tvm = tvm_package()
    described = _described(target)
    emitter = _Emitter(_integers(program, layers), machine(described), layers)
    alone = emitter.device is HVX
    linker: dict[str, Any] = {} if alone else _linker(described)
    if alone:
        bundle.tools()
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / f"{name}.{'elf' if alone else 'so'}", folder / f"{name}.part.so"
    with quiet():
        module = emitter.module()
        coverage = tuple(_coverage(module, emitter.calls))
        if alone:
            bundle.write(module, described, path, f"tvm {tvm.__version__}")
        else:
            with described:
                module = schedule_floats(tuning.apply(module, described, folder / tuning.FOLDER))
            try:
                compiled = tvm.compile(module, described)
            except tvm.error.InternalError as error:
                raise EdgeqError(
                    f"TVM cannot compile this network ({_last_line(error)}); keep the operator that its importer takes and its "
                    "compiler does not out of the model, or use another runtime"
                ) from error
            try:
                compiled.export_library(str(partial), **linker)
            except RuntimeError as error:
                reason = _last_line(error)
                raise EdgeqError(f"TVM could not link {path}: {reason}; install a C++ compiler (g++)") from error
            partial.replace(path)
    backend = target if isinstance(target, str) and target in VARIANTS else "tvm"
    return Artifact(backend, path, coverage, (f"compiled for {_words(described)}",))


def tune(
    program: ExportedProgram,
    folder: Path,
    *,
    trials: int,
    layers: Mapping[str, str] = {},
    progress: Progress,
) -> None:
    """Time `trials` schedules of each float kernel of `program` on this host, into a log in folder/tuning for `lower`.

    Raises:
        EdgeqError: TVM is missing, cannot take an operator, or the log that is there is damaged.
    """
    tvm_package()
    described = _described(None)
    with quiet():
        module = _Emitter(_integers(program, layers), machine(described), layers).module()
    use_threads(1)
    tuning.search(module, described, folder / tuning.FOLDER, trials, progress)


def _integers(program: ExportedProgram, layers: Mapping[str, str]) -> IntegerProgram:
    return without(read(program, layers), MISSING)


def _described(target: str | Mapping[str, Any] | None) -> Any:
    """A variant, a description or None (this host) as TVM's target."""
    import tvm

    chosen = VARIANTS.get(target, target) if isinstance(target, str) else target
    return tvm.target.Target(dict(chosen) if isinstance(chosen, Mapping) else chosen or host_target())


def _linker(target: Any) -> dict[str, Any]:
    """What export_library wants to know to link a shared library for `target`.

    Raises:
        EdgeqError: it is for Arm, this computer is not, and the compiler for it is not installed.
    """
    from tvm.support import cc

    options = ["-Wl,--build-id=none"]
    native = platform.machine() == "aarch64" and platform.system() == "Linux"
    if native or not str(target.attrs.get("mtriple", "")).startswith("aarch64-linux"):
        return {"options": options}
    if shutil.which(ARM_COMPILER) is None:
        raise EdgeqError(
            f"linking for Arm needs {ARM_COMPILER}, which is not installed: apt-get install gcc-aarch64-linux-gnu"
        )
    # no C library is named, so that glibc's and Android's can both serve
    return {"options": [*options, "-nostdlib"], "fcompile": cc.cross_compiler(ARM_COMPILER)}


def _words(target: Any) -> str:
    """A target as a person would say it."""
    named = target.attrs.get("mcpu", "")
    if not named and "mtriple" in target.attrs:
        named = " ".join([str(target.attrs["mtriple"]), *map(str, target.attrs.get("mattr", ()))])
    return str(named or target.kind.name)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _coverage(module: Any, layers: Sequence[tuple[str, ...]]) -> list[OpPlacement]:
    """One row for each call of a kernel in `main`, in order; converting at the float boundary is left out.

    layers: keys of each call.
    """
    rows = []
    for function, keys in zip(called(module), layers, strict=True):
        kind = str(module[function].attrs.get("edgeq.kind", "")) if function in names(module) else ""
        if kind not in ("quantize", "dequantize"):
            rows.append(placement(module[function], function, kind, keys))
    return rows


def names(module: Any) -> set[str]:
    """Names of a module's functions."""
    return {v.name_hint for v in module.get_global_vars()}


def called(module: Any) -> list[str]:
    """Names of the kernels that `main` calls, in order."""
    return [
        str(binding.value.args[0].name_hint)
        for block in module["main"].body.blocks
        for binding in block.bindings
        if getattr(getattr(binding.value, "op", None), "name", "") == "relax.call_tir"
    ]


class _Emitter:
    """Walks the program's graph once, with each value as a Relax expression."""

    def __init__(self, program: IntegerProgram, device: Machine, layers: Mapping[str, str]) -> None:
        from tvm import relax
        from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

        self.program, self.device, self.keys = program, device, layers
        self.graph = program.module.graph
        from_start(self.graph)
        self.relax = relax
        self.builder = relax.BlockBuilder()
        self.importer = ExportedProgramImporter()
        self.importer.block_builder = self.builder
        self.floats: dict[Node, Any] = self.importer.env
        self.integers: dict[str, Any] = {}  # int8 values, four axes lying channels-last
        self.layers: dict[str, tuple[str, ...]] = {}  # kernel → layer keys, of our own kernels
        self.calls: list[tuple[str, ...]] = []  # layer keys of each call in `main`, in order

    def module(self) -> Any:
        """The IRModule with `main`, legalised and fused, and `layers`: each kernel's layer keys as JSON bytes."""
        from tvm import transform
        from tvm.relax import transform as relax_transform

        nodes = list(self.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder"]
        params = [self.relax.Var(n.name, self._type(tuple(value(n).shape), _dtype(value(n).dtype))) for n in inputs]
        self.floats.update(zip(inputs, params, strict=True))
        on_demand = {n.name for n in nodes if n.target in (DEQUANTIZE, *DEQUANTIZE_WEIGHT)}
        absorbed = {name for op in self.program.ops.values() for name in op.absorbed}
        ends: dict[str, str] = {}  # variable → the node whose value it is
        with self.builder.function("main", params):
            with self.builder.dataflow():
                for node in nodes:
                    if node.op == "get_attr":
                        continue
                    if node.target is QUANTIZE:
                        op = self.program.ops.get(node.name)
                        made = self.integers[node.name] = self._integer(op) if op else self._quantize(node)
                        ends[str(made.name)] = node.name
                    elif node.op == "call_function" and node.name not in absorbed | on_demand:
                        made = self.floats[node] = self._float(node)
                        ends[str(getattr(made, "name", ""))] = node.name
                leaves = torch.utils._pytree.tree_leaves(self.graph.output_node().args)
                outputs = [self.builder.emit_output(self._output(n)) for n in leaves]
            self.builder.emit_func_output(outputs[0] if len(outputs) == 1 else self.relax.Tuple(outputs))
        steps = ["LegalizeOps", "AnnotateTIROpPattern", "FoldConstant", "FuseOps", "FuseTIR", "DeadCodeElimination"]
        legalise, *fuse = (getattr(relax_transform, step)() for step in steps)
        legal = legalise(self.builder.get())
        module = transform.Sequential(fuse)(legal)
        told = origins.told(called(transform.Sequential(fuse)(origins.twin(legal, ends))))
        of = members(self.program, self.keys)
        self.calls = [tuple(dict.fromkeys(key for n in nodes_of for key in of.get(n, ()))) for nodes_of in told]
        if len(self.calls) != len(
            called(module)
        ):  # fused otherwise than its twin: only our own kernels tell their layers
            self.calls = [self.layers.get(name, ()) for name in called(module)]
        self.layers = {name: keys for name, keys in self.layers.items() if name in names(module)}
        stored = np.frombuffer(json.dumps(self.layers).encode(), np.uint8)
        extra = self.relax.BlockBuilder()
        with extra.function("layers", []):
            extra.emit_func_output(extra.emit(self.relax.const(stored)))
        module["layers"] = extra.get()["layers"]
        return module

    def _type(self, shape: tuple[int, ...], dtype: str) -> Any:
        return self.relax.TensorType(shape, dtype)

    def _output(self, node: Any) -> Any:
        if not isinstance(node, Node):
            raise EdgeqError(f"the program returns {node!r}, which is no tensor: TVM needs tensors as outputs")
        return self.integers[node.name] if node.target is QUANTIZE else self._real(node)

    def _call(self, function: Any, kind: str, label: str, args: list[Any], shape: tuple[int, ...], dtype: str) -> Any:
        """Emit one kernel call under a name of its own, and remember which layers it computes."""
        function = function.with_attr("edgeq.kind", kind).with_attr("edgeq.node", label)
        variable = self.builder.add_func(function, f"{kind}_{label}")
        found = tuple(dict.fromkeys(self.keys[n] for n in self._members(label) if n in self.keys))
        if found:
            self.layers[variable.name_hint] = found
        return self.builder.emit(self.relax.call_tir(variable, args, self._type(shape, dtype)))

    def _members(self, label: str) -> tuple[str, ...]:
        op = self.program.ops.get(label)
        return (label, *op.absorbed) if op else (label,)

    def _integer(self, op: IntegerOp) -> Any:
        out = tuple(value(op.node).shape)
        inputs = [self._stored(name) for name in op.inputs]
        sources = [n for n in self.graph.nodes if n.name in op.inputs]
        by_name = {n.name: tuple(value(n).shape) for n in sources}
        shapes = [by_name[name] for name in op.inputs]
        memory = moves.lying(out)
        if role_of(op.kind) == "layer":
            shape, weight = geometry(op, shapes[0], out)
            packed = sums.pack(op, shape, weight, self.device)
            function = sums.kernel(op, shape, packed, self.device, moves.lying(shapes[0]), memory)
            constants: tuple[Any, ...] = (packed.weight, packed.bias, packed.multiplier)
        elif op.table is not None:
            places = value(op.table)
            function, constants = (
                moves.gather(op, shapes[0], tuple(places.shape), _dtype(places.dtype), self.device),
                (),
            )
            inputs.append(self.floats[op.table])
        elif (source := self._unmoved(op)) is not None:
            return self.builder.emit(self.relax.op.reshape(self._stored(source), memory))
        else:
            function, constants = moves.kernel(op, shapes, out, self.device)
        return self._call(function, op.kind, op.name, [*inputs, *map(self.relax.const, constants)], memory, "int8")

    def _unmoved(self, op: IntegerOp) -> str | None:
        """The value whose bytes are `op`'s own already, behind changes of shape and order that undo each other."""
        moved = [op]
        while moved[0].kind in ("reshape", "permute"):
            name = moved[0].inputs[0]
            node = next(n for n in self.graph.nodes if n.name == name)
            if moves.is_view(moved, tuple(value(node).shape)):
                return name
            if name not in self.program.ops:
                break
            moved.insert(0, self.program.ops[name])
        return None

    def _stored(self, name: str) -> Any:
        """An int8 value as it lies in memory; an int8 input of the program is brought there first."""
        if name not in self.integers:
            node = next(n for n in self.graph.nodes if n.name == name)
            raise EdgeqError(f"{node.name} is read as int8 but nothing quantizes it: TVM takes float inputs")
        return self.integers[name]

    def _quantize(self, node: Node) -> Any:
        source = node.args[0]
        assert isinstance(source, Node)
        shape = tuple(value(source).shape)
        function = boundary.quantize(shape, tensor_qparams(node), self.device)
        return self._call(function, "quantize", node.name, [self._real(source)], moves.lying(shape), "int8")

    def _real(self, node: Node) -> Any:
        """A value as float in torch's layout, dequantized or unfolded on demand."""
        if node in self.floats:
            return self.floats[node]
        if node.op == "get_attr":
            self.floats[node] = self.relax.const(constant(self.program.module, node).contiguous().numpy())
        elif node.target in DEQUANTIZE_WEIGHT:
            self.floats[node] = self.relax.const(_unfolded(self.program, node))
        else:
            assert node.target is DEQUANTIZE
            (source,) = node.all_input_nodes
            shape = tuple(value(source).shape)
            function = boundary.dequantize(shape, tensor_qparams(node))
            stored = self._stored(source.name)
            self.floats[node] = self._call(function, "dequantize", node.name, [stored], shape, "float32")
        return self.floats[node]

    def _float(self, node: Node) -> Any:
        """A float operator, by TVM's importer; what that does not take is first decomposed into core aten operators, and
        what it computes otherwise than torch is said in others."""
        for source in node.all_input_nodes:
            self._real(source)
        ours = rewritten(node)
        ways: list[Callable[[], Any]] = [lambda: self._imported(node), lambda: self._decomposed(node, node.target)]
        if ours is not None:
            ways = [lambda: self._decomposed(node, ours)]
        failures: list[Exception] = []
        for way in ways:
            try:
                return way()
            except Exception as error:  # the importer raises whatever comes: KeyError, AssertionError, TVM's own
                failures.append(error)
        first = failures[0]
        name = getattr(node.target, "__name__", str(node.target))
        operator, layer = name.split(".")[0], self.keys.get(node.name, node.name)
        said = f"has no {operator}" if isinstance(first, KeyError) else f"cannot take {operator}"
        reason = "" if isinstance(first, KeyError) else f": {_last_line(first)}"
        raise EdgeqError(
            f"TVM's importer {said} ({layer}){reason}; rewrite it in the model with operators that TVM has"
        ) from first

    def _imported(self, node: Node) -> Any:
        from torch._subclasses.fake_tensor import FakeTensor
        from torch.fx.passes.shape_prop import _extract_tensor_metadata

        convert = self.importer.convert_map[node.target.__name__]  # type: ignore[union-attr] # operators have names
        # the importer reads shapes off tensor_meta, which a loaded program lacks
        for member in (node, *node.all_input_nodes):
            if isinstance(member.meta.get("val"), FakeTensor):
                member.meta.setdefault("tensor_meta", _extract_tensor_metadata(member.meta["val"]))
        made = convert(node)
        found, wanted = getattr(getattr(made, "struct_info", None), "shape", None), node.meta.get("val")
        if found is not None and isinstance(wanted, torch.Tensor) and [int(n) for n in found] != list(wanted.shape):
            raise ValueError(f"it makes {[int(n) for n in found]} of what is {list(wanted.shape)}")
        return made

    def _decomposed(self, node: Node, function: Any) -> Any:
        """`function`, which computes what the operator does, as torch's core aten decomposition, imported step by step."""
        from torch._decomp import core_aten_decompositions
        from torch.fx.experimental.proxy_tensor import make_fx

        sources = list(node.all_input_nodes)

        def alone(*tensors: Any) -> Any:
            given = dict(zip(sources, tensors, strict=True))
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: given[n])
            return function(*args, **kwargs)

        examples = [torch.zeros(s.meta["val"].shape, dtype=s.meta["val"].dtype) for s in sources]
        inner = make_fx(alone, dict(core_aten_decompositions()), tracing_mode="real")(*examples)
        from_start(inner.graph)
        feed = iter(sources)
        for step in inner.graph.nodes:
            if step.op == "placeholder":
                self.floats[step] = self.floats[next(feed)]
            elif step.op == "get_attr":
                self.floats[step] = self.relax.const(constant(inner, step).numpy())
            elif step.op == "call_function":
                self.floats[step] = self._imported(step)
        return torch.fx.map_arg(inner.graph.output_node().args[0], lambda n: self.floats[n])


def _unfolded(program: IntegerProgram, node: Node) -> Any:
    """Weight-only int8 weights as float32."""
    return coded_weight(program.module, node).decode().contiguous().numpy()


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
