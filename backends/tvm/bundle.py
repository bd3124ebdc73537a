"""A network for a processor without TVM's runtime: kernels as an object file, and the order of their calls as plain C.

Relax's virtual machine is replaced by a plan (tools/runners/hexagon/edgeq_plan.h): every value's place in memory and every
kernel's arguments. A runner of our own makes one program of it all, which qemu-hexagon executes; an app for a phone's DSP
links the same object file, plan.c and model.c.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.spec import EdgeqError

ALIGNMENT = 128  # bytes; EDGEQ_ALIGNMENT of edgeq_plan.h
STACK_BYTES = 1024  # TVM keeps buffers up to this size on the stack
CODES = {"int": 0, "uint": 1, "float": 2, "bool": 6}  # DLPack's
COMPILER, LINKER = "clang", "ld.lld"
PACKAGES = "apt-get install clang-16 lld-16"
FLAGS = ("--target=hexagon-unknown-linux-musl", "-mcpu=hexagonv67", "-O2", "-ffreestanding", "-fno-builtin", "-std=c99")


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: its shape and dtype, and where it lies: `input`, `output`, `constant` or `scratch`, and index or offset."""

    shape: tuple[int, ...]
    dtype: str
    place: str
    where: int

    @property
    def bytes(self) -> int:
        """How large it is."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(slots=True)
class Plan:
    """Calls in order, as names and indices of values, and what they need.

    constants: bytes of all constant values. scratch, workspace: bytes for values between kernels, and within one.
    """

    values: list[Value] = field(default_factory=list)
    steps: list[tuple[str, list[int]]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    constants: bytearray = field(default_factory=bytearray)
    scratch: int = 0
    workspace: int = 0


def write(module: Any, target: Any, path: Path, version: str) -> None:
    """Compile an IRModule whose `main` only calls kernels: an executable `path`, and a folder of its parts beside it.

    The folder is called as `path` without its suffix: kernels.o, plan.c, constants.bin and the runner's sources.

    Raises:
        EdgeqError: `main` does something else than calling kernels, clang or lld is missing, or they fail.
    """
    plan = planned(module)
    folder = path.with_suffix("")
    with tempfile.TemporaryDirectory(prefix=f"{path.stem}.", dir=path.parent) as scratch:
        parts = Path(scratch) / "parts"
        parts.mkdir()
        _kernels(module, {name for name, _ in plan.steps}, target, parts / "kernels.o")
        (parts / "constants.bin").write_bytes(bytes(plan.constants))
        (parts / "plan.c").write_text(source(plan, version), encoding="utf-8")
        for file in resources.files("edgeq.runners").joinpath("hexagon").iterdir():
            (parts / file.name).write_bytes(file.read_bytes())
        program = Path(scratch) / path.name
        link(parts, program)
        if folder.is_dir():
            folder.rename(Path(scratch) / "old")
        parts.rename(folder)
        program.replace(path)


def planned(module: Any) -> Plan:
    """The calls of `main`, with every value given its place.

    Raises:
        EdgeqError: see `write`.
    """
    from tvm import relax

    main, plan = module["main"], Plan()
    calls = [(b.var, b.value) for block in main.body.blocks for b in block.bindings]
    results = list(main.body.body) if isinstance(main.body.body, relax.Tuple) else [main.body.body]
    if len(set(results)) < len(results) or any(r not in {var for var, _ in calls} for r in results):
        raise EdgeqError("a program for hexagon returns each of its results once, and none of its inputs as it is")
    found: dict[Any, list[int]] = {}  # variable → indices of its values, several of a tuple
    roots = _roots(module, calls, results)

    def add(value: Value) -> int:
        plan.values.append(value)
        return len(plan.values) - 1

    for index, parameter in enumerate(main.params):
        (kind,) = _types(parameter)
        found[parameter] = [add(Value(*kind, "input", index))]
    plan.inputs = [found[p][0] for p in main.params]
    uses: dict[Any, int] = {}  # variable → the last step that reads it
    for i, (_, call) in enumerate(calls):
        sources = [] if isinstance(call, relax.TupleGetItem) else list(call.args[1].fields)
        uses |= {roots.get(source, source): i for source in sources}
    arena = _Arena()
    for i, (var, call) in enumerate(calls):
        kinds = _types(var)
        if isinstance(call, relax.TupleGetItem):
            found[var] = [found[call.tuple_value][call.index]]
            continue
        if not roots[var].same_as(var):
            (origin,) = (plan.values[at] for at in found[call.args[1].fields[0]])
            found[var] = [add(Value(*kinds[0], origin.place, origin.where))]
            continue
        if var in results:
            found[var] = [add(Value(*kinds[0], "output", results.index(var)))]
        else:
            sizes = [Value(*kind, "scratch", 0).bytes for kind in kinds]
            places = [arena.take(size, i, uses.get(var, i)) for size in sizes]
            found[var] = [add(Value(*k, "scratch", place)) for k, place in zip(kinds, places, strict=True)]
        arguments = []
        for argument in call.args[1].fields:
            if isinstance(argument, relax.Constant):
                arguments.append(add(_constant(plan, argument.data.numpy())))
            else:
                arguments += found[argument]
        plan.steps.append((str(call.args[0].name_hint), [*arguments, *found[var]]))
    plan.outputs = [found[r][0] for r in results]
    plan.scratch = arena.size
    plan.workspace = max((_workspace(module[name]) for name, _ in plan.steps), default=0)
    return plan


def _roots(module: Any, calls: list[tuple[Any, Any]], results: list[Any]) -> dict[Any, Any]:
    """Variable → the one whose memory it shares: the tuple that it is a part of, what it is a view of, else itself.

    Raises:
        EdgeqError: a call is of no kernel, or a result shares memory.
    """
    from tvm import relax

    roots: dict[Any, Any] = {}
    for var, call in calls:
        roots[var] = var
        if isinstance(call, relax.TupleGetItem):
            roots[var] = roots[call.tuple_value]
        elif getattr(getattr(call, "op", None), "name", "") != "relax.call_tir":
            raise EdgeqError(f"a program for hexagon calls kernels only, and this one does {call}")
        elif var not in results and relax.analysis.has_reshape_pattern(module[call.args[0]]):
            (source,) = call.args[1].fields
            roots[var] = var if isinstance(source, relax.Constant) else roots.get(source, source)
    if any(not roots[r].same_as(r) for r in results):
        raise EdgeqError("a program for hexagon returns what a kernel computes alone, and not one of several results")
    return roots


class _Arena:
    """Memory for values by the steps between which they live; the lowest place that is free."""

    def __init__(self) -> None:
        self.size = 0
        self.taken: list[tuple[int, int, int]] = []  # offset, end, last step

    def take(self, size: int, first: int, last: int) -> int:
        """Offset of `size` bytes from step `first` to step `last`; steps come in order."""
        self.taken = sorted(t for t in self.taken if t[2] >= first)
        offset, whole = 0, -(-max(size, 1) // ALIGNMENT) * ALIGNMENT
        for start, end, _ in self.taken:
            if start - offset >= whole:
                break
            offset = max(offset, end)
        self.taken.append((offset, offset + whole, last))
        self.size = max(self.size, offset + whole)
        return offset


def _types(variable: Any) -> list[tuple[tuple[int, ...], str]]:
    """Shape and dtype of a variable, or of each part of a tuple."""
    parts = list(variable.ty.fields) if hasattr(variable.ty, "fields") else [variable.ty]
    return [(tuple(int(n) for n in part.shape), str(part.dtype)) for part in parts]


def _constant(plan: Plan, values: npt.NDArray[Any]) -> Value:
    plan.constants.extend(bytes(-len(plan.constants) % ALIGNMENT))
    where = len(plan.constants)
    plan.constants.extend(np.ascontiguousarray(values).tobytes())
    return Value(tuple(values.shape), str(values.dtype), "constant", where)


def _workspace(function: Any) -> int:
    """Bytes of all buffers that a kernel allocates beyond the stack."""
    from tvm import tirx

    sizes: list[int] = []

    def visit(node: Any) -> None:
        buffers = [node.buffer] if isinstance(node, tirx.AllocBuffer) else []
        buffers += list(node.alloc_buffers) if isinstance(node, tirx.SBlock) else []
        for buffer in buffers:
            size = int(np.prod([int(n) for n in buffer.shape])) * np.dtype(str(buffer.dtype)).itemsize
            sizes.append(-(-size // ALIGNMENT) * ALIGNMENT)

    tirx.stmt_functor.post_order_visit(function.body, visit)
    return sum(size for size in sizes if size >= STACK_BYTES)


def _kernels(module: Any, names: set[str], target: Any, path: Path) -> None:
    """One object file with the kernels as functions of TVM's calling convention."""
    import tvm

    functions = {name: module[name].with_attr("global_symbol", name) for name in sorted(names)}
    tvm.compile(tvm.IRModule(functions), target).mod.write_to_file(str(path))


def source(plan: Plan, version: str) -> str:
    """plan.c: the plan as C data."""
    lines = ["// Written by edgeq.", '#include "edgeq_plan.h"', ""]
    lines += [f"edgeq_kernel __tvm_ffi_{name};" for name in sorted({name for name, _ in plan.steps})]
    for i, value in enumerate(plan.values):
        strides = [int(np.prod(value.shape[a + 1 :], dtype=np.int64)) for a in range(len(value.shape))]
        lines.append(f"static const int64_t shape{i}[] = {_braced([*value.shape, 0])};")  # an empty array is no C
        lines.append(f"static const int64_t strides{i}[] = {_braced([*strides, 0])};")
    lines.append("static const edgeq_value values[] = {")
    for i, value in enumerate(plan.values):
        kind = value.dtype.rstrip("0123456789")
        bits = 8 if kind == "bool" else int(value.dtype.removeprefix(kind))
        fields = [f"EDGEQ_{value.place.upper()}", CODES[kind], bits, len(value.shape), value.where, value.bytes]
        lines.append(f"  {_braced([*fields, f'shape{i}', f'strides{i}'])},")
    lines.append("};")
    for i, (_, arguments) in enumerate(plan.steps):
        lines.append(f"static const uint16_t step{i}[] = {_braced(arguments)};")
    lines.append("static const edgeq_step steps[] = {")
    for i, (name, arguments) in enumerate(plan.steps):
        lines.append(f'  {{"{name}", __tvm_ffi_{name}, {len(arguments)}, step{i}}},')
    lines += ["};", f"static const uint16_t inputs[] = {_braced(plan.inputs or [0])};"]
    lines.append(f"static const uint16_t outputs[] = {_braced(plan.outputs)};")
    counts = [len(plan.inputs), len(plan.outputs), len(plan.values), len(plan.steps)]
    named = ["inputs", "outputs", "values", "steps", plan.scratch, plan.workspace]
    quoted = f'"{version}"'
    lines += [
        f"const edgeq_plan edgeq_model = {_braced([quoted, *counts, *named])};",
        f"char edgeq_scratch[{max(plan.scratch, 1)}] __attribute__((aligned(EDGEQ_ALIGNMENT)));",
        f"char edgeq_workspace[{max(plan.workspace, 1)}] __attribute__((aligned(EDGEQ_ALIGNMENT)));",
        '__asm__(".section .rodata\\n.p2align 7\\n.globl edgeq_constants\\nedgeq_constants:\\n"',
        '        ".incbin \\"constants.bin\\"\\n.previous\\n");',
    ]
    return "\n".join(lines) + "\n"


def _braced(items: list[Any]) -> str:
    return "{" + ", ".join(map(str, items)) + "}"


def link(folder: Path, program: Path) -> None:
    """A static program of a bundle's parts and the runner.

    Raises:
        EdgeqError: clang or lld is missing, or a kernel calls what a program without a C library does not have.
    """
    compiler, linker = tools()
    objects = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("plan", "model", "runner", "builtins"):
            made = Path(scratch) / f"{name}.o"
            _run([compiler, *FLAGS, "-c", f"{name}.c", "-o", str(made)], folder)
            objects.append(str(made))
        _run([linker, "-static", "-o", str(program.resolve()), *objects, "kernels.o"], folder)
    program.chmod(0o755)


def tools() -> tuple[str, str]:
    """clang and lld, by path.

    Raises:
        EdgeqError: one is missing.
    """
    found = [shutil.which(f"{name}-16") or shutil.which(name) for name in (COMPILER, LINKER)]
    for name, path in zip((COMPILER, LINKER), found, strict=True):
        if path is None:
            raise EdgeqError(f"linking for Hexagon needs {name} 16 or later, which is not installed: {PACKAGES}")
    return str(found[0]), str(found[1])


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    missing = sorted({line.rsplit(": ", 1)[-1] for line in done.stderr.splitlines() if "undefined symbol" in line})
    if missing:
        raise EdgeqError(
            f"a float operator calls {', '.join(missing)}, which a program without a C library lacks: "
            "quantize that operator, or run this network elsewhere"
        )
    said = next((line for line in done.stderr.splitlines() if "error" in line), f"status {done.returncode}")
    raise EdgeqError(f"{Path(command[0]).name} failed: {said}")
