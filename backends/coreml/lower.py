"""QDQ or float program → .mlpackage by coremltools, checked and described from what was saved."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from edgeq.backends.coreml.package import Operation, Program, coremltools, normalise, read, replace
from edgeq.graph.integer import DEQUANTIZE, QUANTIZE, tensor_qparams
from edgeq.graph.quiet import quiet
from edgeq.spec import Artifact, EdgeqError, OpPlacement, QParams, Status, TensorInfo

aten = torch.ops.aten
CLAMPS = (aten.hardtanh.default, aten.hardtanh_.default, aten.clamp.default)
POOLS = frozenset(getattr(aten, f"{kind}_pool{axes}d").default for kind in ("max", "avg") for axes in (1, 2, 3))
NARROW = (torch.uint8, torch.int8, torch.int16)  # integer inputs that a package has no type for
CLIPS = frozenset({"relu", "relu6", "clip"})
FLOATS = {"fp32": "float32", "fp16": "float16"}  # MIL's words for an input's type → ours
VALUES = frozenset({"fp16", "fp32", "int8", "uint8"})  # activations; every other type holds indices or truth values
PLUMBING = frozenset({"quantize", "dequantize", "constexpr_affine_dequantize", "cast"})
# MIL's operators of the kinds that the target keeps between dequantize and quantize; any other between them is a float one
KINDS = frozenset((
    "conv", "conv_transpose", "linear", "matmul", "einsum", "add", "sub", "mul", "avg_pool", "max_pool",
    "reduce_mean", "softmax", "sigmoid", "tanh", "relu", "relu6", "clip", "concat", "stack", "reshape", "transpose",
    "expand_dims", "squeeze", "slice_by_index", "slice_by_size", "split", "pad", "gather",
    "upsample_nearest_neighbor", "resize_nearest_neighbor", "pixel_shuffle", "pixel_unshuffle",
))  # fmt: skip

# It rewrites add and sub so that one operand's scale is 1 and stores scales that the program never had; the sums
# then round differently from every other runtime's.
RESCALES = "common::distributive_quantized_binary_op_scale_normalization"
# It lets a reshape run on the integers without looking whether the scales before and after it are the same.
RESHAPES = "common::int_op_canonicalization"

# operators that its converter lacks, in operators that it has
LACKING = (
    aten.addcmul,
    aten.addcdiv,
    aten.celu,
    aten.logit,
    aten.deg2rad,
    aten.rad2deg,
    aten.linalg_cross,
    aten.heaviside,
    aten.baddbmm,
    aten.addmm,
)
LINEAR = 15.0  # of softplus: where its curve is a line to float32's last bit

HALF_NORMAL = 2.0**-14  # below it half precision loses digits


def lower(
    program: ExportedProgram,
    folder: Path,
    *,
    name: str = "model",
    layers: Mapping[str, str] = {},
    compute: Literal["fp32", "fp16"] = "fp16",
    outputs: Sequence[str] = (),
) -> Artifact:
    """Write `folder/name.mlpackage` for iOS 17, macOS 14 and later.

    program: at torch.export's own level, static shapes; inputs of other integers become int32. Inputs keep their names.
    outputs: their names, as nearly as a package can have them; else their keys in the program's result, else `output`,
        `output_1`, ...
    compute: the float type of the package. Only `fp16` may run on the Neural Engine; a float32 package stays on CPU
        and GPU, which dequantise (coremltools guide, "Typed Execution"). Inputs and outputs are float32 either way.

    Raises:
        EdgeqError: coremltools is missing, or does not take an operator of the program (named, with the reason).
    """
    ct = coremltools()
    with quiet():
        decomposed = program.run_decompositions(_decompositions())
        _float_bounds(decomposed)
        _strides(decomposed)
        _wide_inputs(decomposed)
        names = _identifiers(outputs or _output_names(program), list(map(str, program.graph_signature.user_inputs)))
        _check_outputs(decomposed, names)
        keys = _keys(decomposed, layers)
        pipeline = ct.PassPipeline.DEFAULT
        pipeline.remove_passes({RESCALES} if _moves_keep_scales(decomposed) else {RESCALES, RESHAPES})
        try:
            model = ct.convert(
                decomposed,
                minimum_deployment_target=ct.target.iOS17,
                compute_precision=ct.precision.FLOAT16 if compute == "fp16" else ct.precision.FLOAT32,
                outputs=[_output_type(ct, name, node) for name, node in zip(names, _results(decomposed), strict=True)],
                pass_pipeline=pipeline,
                skip_model_load=True,
            )
        except Exception as error:
            raise _sentence(error, keys) from error
        folder.mkdir(parents=True, exist_ok=True)
        workshop = Path(tempfile.mkdtemp(prefix=".mlpackage-", dir=folder))
        path = folder / f"{name}.mlpackage"
        try:
            fresh = workshop / path.name
            model.save(str(fresh))
            normalise(fresh)
            replace(fresh, path)
        finally:
            shutil.rmtree(workshop)
    saved = read(path)
    given, made = _ports(saved, decomposed)
    rows = _coverage(saved, _layers(saved, decomposed, saved.outputs, keys))
    return Artifact("coreml", path, rows, _notes(saved, compute), given, made)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """gelu's tanh form spelled out: coremltools does not read the keyword and would compute erf."""
    if approximate == "none":
        return NotImplemented  # type: ignore[no-any-return] # torch's word for leaving the operator as it is
    return x * (0.5 * (torch.tanh((x + 0.044715 * x**3) * math.sqrt(2 / math.pi)) + 1))


def _decompositions() -> dict[Any, Any]:
    """What stands for operators that the converter lacks or computes otherwise than torch."""
    return {
        **get_decompositions(LACKING),
        aten.gelu.default: _gelu,
        aten.reciprocal.default: _reciprocal,
        aten.softplus.default: _softplus,
        aten.log_sigmoid.default: lambda x: -aten.softplus.default(-x),
        aten.lerp.Scalar: _lerp,
        aten.lerp.Tensor: _lerp,
        aten.upsample_bilinear2d.vec: _bilinear,
        aten.upsample_bicubic2d.vec: _bicubic,
    }


def _lerp(a: Tensor, b: Tensor, share: Tensor | float) -> Tensor:
    return a + share * (b - a)


def _bilinear(x: Tensor, size: Sequence[int] | None, corners: bool, factors: Sequence[float] | None = None) -> Any:
    """The converter refuses a factor that the sizes are no ratio of: two products with the shares of each pixel instead."""
    if corners or factors is None or all(n * f == int(n * f) for n, f in zip(x.shape[-2:], factors, strict=True)):
        return NotImplemented
    down, across = (_shares(n, f) for n, f in zip(x.shape[-2:], factors, strict=True))
    return down @ (x @ across.T)


def _shares(size: int, factor: float) -> Tensor:
    """What each of `size` pixels gives to each of those made of them, float32 [made, size]: a hat around its place."""
    at = ((torch.arange(int(size * factor), dtype=torch.float32) + 0.5) * (1 / factor) - 0.5).clamp(0, size - 1)
    return torch.relu(1 - (at[:, None] - torch.arange(size, dtype=torch.float32)).abs())


def _bicubic(x: Tensor, size: Sequence[int] | None, corners: bool, factors: Sequence[float] | None = None) -> Tensor:
    """The converter has no bicubic: two products with the shares of each pixel."""
    before = x.shape[-2:]
    after = size if size is not None else [int(n * f) for n, f in zip(before, factors or (), strict=True)]
    steps = [1 / f for f in factors] if factors is not None else [n / m for n, m in zip(before, after, strict=True)]
    if corners:
        steps = [(n - 1) / max(m - 1, 1) for n, m in zip(before, after, strict=True)]
    shift = 0.0 if corners else 0.5
    down, across = (_cubic_shares(*each, shift) for each in zip(before, after, steps, strict=True))
    return down @ (x @ across.T)


def _cubic_shares(size: int, made: int, step: float, shift: float) -> Tensor:
    """What each of `size` pixels gives to each of `made`, float32 [made, size]: Keys' cubic (a = -0.75), the border repeated."""
    at = (torch.arange(made, dtype=torch.float32) + shift) * step - shift
    low, a = at.floor(), -0.75
    part = at - low
    shares = torch.zeros(made, size)
    for place, far in ((-1, 1 + part), (0, part), (1, 1 - part), (2, 2 - part)):
        near = ((a + 2) * far - (a + 3)) * far * far + 1
        share = near if place in (0, 1) else ((far - 5) * far + 8) * far * a - 4 * a
        taken = (low + place).clamp(0, size - 1)
        shares = shares + share[:, None] * torch.relu(1 - (taken[:, None] - torch.arange(size)).abs())
    return shares


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """The converter leaves out above which value torch takes the curve for a line."""
    if threshold >= LINEAR:
        return NotImplemented
    curve: Tensor = aten.softplus.default(x, beta)
    return torch.where(x * beta > threshold, x, curve)


def _reciprocal(x: Tensor) -> Tensor:
    """1 / x as a power: coremltools makes it `inverse`, whose default epsilon adds 1e-4 to every divisor."""
    return torch.pow(x, -1.0)


def _float_bounds(program: ExportedProgram) -> None:
    """Clip bounds as floats: coremltools takes integer bounds for integer tensors and fails on float ones."""
    for node in program.graph.nodes:
        if node.target in CLAMPS and node.meta["val"].is_floating_point():
            node.args = (node.args[0], *(None if bound is None else float(bound) for bound in node.args[1:]))


def _strides(program: ExportedProgram) -> None:
    """A pool's stride in words where it is the window, torch's default: coremltools wants it for some kinds."""
    for node in program.graph.nodes:
        if node.target in POOLS and (len(node.args) == 2 or not node.args[2]):
            node.args = (node.args[0], node.args[1], node.args[1], *node.args[3:])


def _wide_inputs(program: ExportedProgram) -> None:
    """Bytes as inputs become int32, as int64 does: a package takes no narrower integers."""
    taken = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in taken and node.meta["val"].dtype in NARROW:
            node.meta["val"] = node.meta["val"].to(torch.int32)


def _check_outputs(program: ExportedProgram, names: list[str]) -> None:
    """Core ML names every output once, and none of them like an input."""
    seen: dict[Any, str] = {}
    for name, node in zip(names, _results(program), strict=True):
        if node.name in program.graph_signature.user_inputs:
            raise EdgeqError(f"output {name} is the input {node.name} itself, which Core ML names once: leave it out")
        if node in seen:
            raise EdgeqError(f"outputs {seen[node]} and {name} are one tensor, which Core ML names once: return one")
        seen[node] = name


def _moves_keep_scales(program: ExportedProgram) -> bool:
    """Whether each reshape between dequantize and quantize has the same scale and zero point on both sides."""
    shapes = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
    for node in program.graph.nodes:
        if node.target is QUANTIZE and node.args[0].target in shapes:
            before = node.args[0].args[0]
            if before.target is DEQUANTIZE and tensor_qparams(before) != tensor_qparams(node):
                return False
    return True


def _results(program: ExportedProgram) -> list[Any]:
    """The nodes that make the program's outputs, in order."""
    return [n for n in program.graph.output_node().args[0] if n is not None]


def _output_names(program: ExportedProgram) -> list[str]:
    """A name for each output: its keys in the result (`boxes`, `levels_0`), else `output`, `output_1`, ..."""
    spec = program.call_spec.out_spec
    assert spec is not None
    tree = pytree.tree_unflatten([0] * spec.num_leaves, spec)
    names = []
    for at, (keys, _) in enumerate(pytree.tree_flatten_with_path(tree)[0]):
        parts = [str(getattr(k, "key", getattr(k, "idx", ""))) for k in keys]
        named = any(isinstance(k, pytree.MappingKey) for k in keys)
        names.append("_".join(parts) if named else "output" if at == 0 else f"output_{at}")
    return names


def _identifiers(wanted: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """Names that a package can have: identifiers, each there once, and none an input's."""
    names: list[str] = []
    for name in wanted:
        plain = re.sub(r"[^a-zA-Z0-9_]", "_", name)
        count, taken = 0, {*inputs, *names}
        while (f"{plain}_{count}" if count else plain) in taken:
            count += 1
        names.append(f"{plain}_{count}" if count else plain)
    return names


def _ports(saved: Program, program: ExportedProgram) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """Inputs and outputs of the package, as an app meets them: floats, or int32, and the grids that the program puts them on."""
    nodes = {n.name: n for n in program.graph.nodes}

    def described(name: str, shape: Sequence[int], dtype: str, grids: set[QParams | None]) -> TensorInfo:
        return TensorInfo(name, tuple(shape), dtype, next(iter(grids)) if len(grids) == 1 else None)

    given = []
    for variable, taken in zip(saved.inputs, program.graph_signature.user_inputs, strict=True):
        grids = {tensor_qparams(u) if u.target is QUANTIZE else None for u in nodes[str(taken)].users}
        given.append(described(variable.name, variable.shape, FLOATS.get(variable.dtype, variable.dtype), grids))
    made = []
    for name, node in zip(saved.outputs, _results(program), strict=True):
        dtype = "float32" if node.meta["val"].is_floating_point() else "int32"
        grid = tensor_qparams(node) if node.target is DEQUANTIZE else None
        made.append(described(name, node.meta["val"].shape, dtype, {grid}))
    return tuple(given), tuple(made)


def _output_type(ct: Any, name: str, node: Any) -> Any:
    types = ct.converters.mil.mil.types
    return ct.TensorType(name=name, dtype=types.fp32 if node.meta["val"].is_floating_point() else types.int32)


def _sentence(error: Exception, keys: Mapping[str, str]) -> EdgeqError:
    """A failed conversion as one sentence that names the operator and its layer."""
    tools = f"coremltools {coremltools().__version__}"
    missing = re.search(r"convert function for op '([\w.]+)' not implemented|Unsupported fx node (\S+)", str(error))
    if missing:
        operator = missing[1] or missing[2].rstrip(",")
        return EdgeqError(f"{tools} has no conversion for the operator {operator}: rewrite it in the model")
    where = _operator_at(error.__traceback__, keys)
    reason = next(iter(str(error).strip().splitlines()), "")
    if not isinstance(error, (ValueError, NotImplementedError, RuntimeError)) or not reason:
        reason = f"its converter fails on these arguments ({type(error).__name__}); try other ones in the model"
    return EdgeqError(f"{tools} cannot convert {where or 'this program'}: {reason}")


def _operator_at(trace: TracebackType | None, keys: Mapping[str, str]) -> str | None:
    """The operator that coremltools' torch frontend was converting, read off its frame: messages often leave it out."""
    found = None
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "convert_single_node":
            node = trace.tb_frame.f_locals.get("node")
            found = f"operator {node.kind} ({keys.get(node.name, node.name)})" if node is not None else found
        trace = trace.tb_next
    return found


def _layers(
    program: Program, decomposed: ExportedProgram, outputs: Sequence[str], nodes: Mapping[str, str]
) -> dict[str, str]:
    """MIL operator → layer key. coremltools names an operator after its graph node, and appends what it did to it."""
    results = zip(outputs, _results(decomposed), strict=True)
    keys = {**nodes, **{name: nodes[node.name] for name, node in results if node.name in nodes}}
    bases = {op.name: re.sub(r"(_has_output_shape)?(_cast_(fp16|u?int16))*$", "", op.name) for op in program.operations}
    found = {name: keys[base] for name, base in bases.items() if base in keys}
    taken = set(bases.values())
    for name, base in bases.items():  # a second name for an operator whose result has its node's name already
        first = base.removesuffix("_0")
        if name not in found and first != base and first not in taken and first in keys:
            found[name] = keys[first]
    return found


def _keys(decomposed: ExportedProgram, layers: Mapping[str, str]) -> dict[str, str]:
    """Decomposed node → layer key."""
    nodes = decomposed.graph.nodes
    return {n.name: key for n in nodes if (key := _key(n.name, n.meta.get("from_node", []), layers))}


def _key(name: str, sources: Any, layers: Mapping[str, str]) -> str | None:
    """The layer key of a decomposed node: by its own name, or that of a node it was made from."""
    for source in sources:
        if (key := layers.get(source.name) or _key("", source.from_node, layers)) is not None:
            return key
    return layers.get(name)


def _coverage(program: Program, layers: Mapping[str, str]) -> tuple[OpPlacement, ...]:
    """One row for each computing operator of the saved program."""
    made = {o.name: op for op in program.operations for o in op.outputs}
    dtypes = {v.name: v.dtype for v in (*program.inputs, *(o for op in program.operations for o in op.outputs))}
    readers: dict[str, list[Operation]] = {}
    for op in program.operations:
        for name in _sources(op):
            readers.setdefault(name, []).append(op)

    def fed(op: Operation) -> bool:
        """Whether all values that `op` reads come from integers: dequantised, or already int8; indices left out."""
        read = [made[n] for n in _sources(op) if n in made and made[n].type != "constexpr_affine_dequantize"]
        sources = [s for s in read if s.outputs[0].dtype in VALUES]
        return bool(sources) and all(s.type in ("dequantize", "quantize") for s in sources)

    def drained(op: Operation) -> bool:
        """Whether all that `op` makes is quantized again."""
        users = [u for o in op.outputs for u in readers.get(o.name, [])]
        outside = any(o.name in program.outputs for o in op.outputs)
        return bool(users) and not outside and all(u.type == "quantize" for u in users)

    def sandwiched(op: Operation) -> bool:
        if op.type in CLIPS:  # an activation may stand behind its operator
            before = made.get(op.inputs["x"][0])
            return drained(op) and before is not None and (fed(op) or fed(before))
        users = [u for o in op.outputs for u in readers.get(o.name, [])]
        return fed(op) and (drained(op) or (len(users) == 1 and users[0].type in CLIPS and drained(users[0])))

    rows = []
    for op in program.operations:
        if op.type in PLUMBING:
            continue
        placed = (layers[op.name],) if op.name in layers else ()
        if op.outputs[0].dtype in ("int8", "uint8"):
            rows.append(OpPlacement(op.name, op.type, "eligible", "it moves int8 values", placed))
        elif op.outputs[0].dtype not in VALUES:
            compares = any(dtypes.get(n) in VALUES for n in _sources(op))
            status: Status = "float island" if compares else "eligible"
            rows.append(OpPlacement(op.name, op.type, status, "integer or logical values", placed))
        elif op.type not in KINDS or not sandwiched(op):
            stored = any(made[n].type == "constexpr_affine_dequantize" for n in _sources(op) if n in made)
            reason = "float activations; its weights are stored as int8" if stored else "float activations"
            rows.append(OpPlacement(op.name, op.type, "float island", reason, placed))
        elif op.outputs[0].dtype == "fp32":
            rows.append(OpPlacement(op.name, op.type, "float island", FLOAT32, placed))
        else:
            rows.append(OpPlacement(op.name, op.type, "eligible", ELIGIBLE, placed))
    return tuple(rows)


# coremltools guide, "Quantization: Performance" and "Typed Execution"
ELIGIBLE = "the device decides: the Neural Engine computes int8 from A17 Pro and M4 on, CPU and GPU may dequantise"
FLOAT32 = "a float32 package runs on CPU and GPU only, which dequantise; compute='fp16' opens the Neural Engine"


def _sources(op: Operation) -> list[str]:
    return [name for names in op.inputs.values() for name in names]


def _notes(program: Program, compute: str) -> tuple[str, ...]:
    """What half precision does to the program's scales."""
    if compute == "fp32":
        return (FLOAT32,)
    scales = [
        program.constants[op.inputs["scale"][0]]
        for op in program.operations
        if op.type in ("quantize", "dequantize", "constexpr_affine_dequantize")
    ]
    small = sum(int((s < HALF_NORMAL).sum()) for s in scales if isinstance(s, Tensor))
    return (f"{small} scales lie below half precision's normal range and lose digits",) if small else ()
