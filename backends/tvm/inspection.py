"""Read off a kernel what it computes in: integers throughout, or float."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from edgeq.graph.kinds import role_of
from edgeq.spec import OpPlacement

INTEGER_DOTS = (
    "pmadd",
    "vpdpbusd",
    "sdot",
    "vrmpybv",
    "vmpyhv",
)  # LLVM intrinsics that multiply integers into int32 sums


def placement(function: Any, name: str, kind: str, layers: tuple[str, ...]) -> OpPlacement:
    """The coverage row of one kernel (a PrimFunc before code generation).

    A kernel counts as integer only if every accumulation (a store to memory that its own value reads) is free of
    float arithmetic, and, for kinds with weights, some int32 accumulation multiplies what was loaded from int8 weights.
    """
    if not kind and all(str(p.dtype) == "int8" for p in function.params):
        return OpPlacement(name, "reshape", "integer", "the same bytes under another shape", layers)
    if not kind and not any("float" in str(p.dtype) for p in function.params):
        return OpPlacement(name, name.removeprefix("fused_"), "integer", "integer or logical values", layers)
    if not kind:
        reason = "computed in float32 by TVM's own operators"
        return OpPlacement(name, name.removeprefix("fused_"), "float island", reason, layers)
    floats, products = accumulations(function)
    if floats:
        return OpPlacement(name, kind, "float island", f"sums in float: {floats[0]}", layers)
    if role_of(kind) == "layer" and not products:
        return OpPlacement(name, kind, "float island", "no int32 sum of int8 products was found in the kernel", layers)
    return OpPlacement(name, kind, "integer", "", layers)


def accumulations(function: Any) -> tuple[list[str], list[str]]:
    """(float accumulations, int32 sums of products with int8 weights) of a PrimFunc, by the name of their buffer."""
    from tvm import tirx

    bound: dict[Any, Any] = {}
    views: dict[Any, Any] = {}  # flat view → parameter
    stores: list[Any] = []

    def collect(node: Any) -> None:
        if isinstance(node, tirx.Bind):
            bound[node.var] = node.value
        elif isinstance(node, tirx.DeclBuffer):
            views[node.buffer] = node.data.args[0]
        elif isinstance(node, tirx.BufferStore):
            stores.append(node)

    tirx.stmt_functor.post_order_visit(function.body, collect)
    weights = [p for p in function.params if p.name == "weight" and str(p.dtype) == "int8"]
    floats, products = [], []
    for store in stores:
        found = _contents(store.value, bound)
        if not any(b.same_as(store.buffer) for b in found.buffers):
            continue
        if found.float:
            floats.append(str(store.buffer.name))
        elif found.product and str(store.buffer.dtype) == "int32":
            read = [views.get(b, b) for b in found.buffers]
            if any(b.same_as(w) for b in read for w in weights):
                products.append(str(store.buffer.name))
    return floats, products


@dataclass(slots=True)
class _Contents:
    """What an expression reads and does, bound variables followed, index arithmetic left out."""

    buffers: list[Any] = field(default_factory=list)
    float: bool = False
    product: bool = False


def _contents(value: Any, bound: dict[Any, Any]) -> _Contents:
    from tvm import ir, tirx
    from tvm.target import codegen

    found, pending = _Contents(), [value]
    while pending:
        node = pending.pop()
        found.float = found.float or "float" in str(getattr(node, "ty", ""))
        if isinstance(node, tirx.BufferLoad):
            found.buffers.append(node.buffer)
        elif isinstance(node, tirx.Var):
            pending += [bound[node]] if node in bound else []
        elif isinstance(node, ir.Call):
            name = ""
            if node.op.name == "tirx.call_llvm_pure_intrin":
                name = str(codegen.llvm_get_intrinsic_name(int(node.args[0])))
            found.product = found.product or any(dot in name for dot in INTEGER_DOTS)
            pending += list(node.args)
        else:
            found.product = found.product or isinstance(node, tirx.Mul)
            parts = [getattr(node, part, None) for part in ("a", "b", "value")]
            pending += [p for p in parts if hasattr(p, "ty")]
    return found
