"""Which nodes each call of a kernel computes: told by a twin of the module whose kernels are named after them.

TVM gives equal float operators one kernel and fuses neighbours under names of its own. In the twin every call has a kernel
with its node in the name, and fusing joins the names; both modules are fused alike, so calls pair up in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MARK = "_node_"  # before a node's name in a kernel's
END = "_end_"


def twin(module: Any, ends: Mapping[str, str]) -> Any:
    """A legalised `module` with each call on a kernel of its own, named after the node it is part of.

    ends: name of the variable that holds a node's value → the node. Some nodes take several calls; those before a node's
    value belong to it.
    """
    from tvm import relax
    from tvm.ir import Op
    from tvm.relax.expr_functor import PyExprMutator, mutator

    owners: dict[str, str] = {}
    waiting: list[str] = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            waiting.append(str(binding.var.name))
            if waiting[-1] in ends:
                owners.update(dict.fromkeys(waiting, ends[waiting[-1]]))
                waiting.clear()
    call_tir = Op.get("relax.call_tir")

    @mutator
    class Marker(PyExprMutator):  # type: ignore[misc] # untyped
        def visit_var_binding_(self, binding: Any) -> None:
            owner, call = owners.get(str(binding.var.name)), binding.value
            if owner is not None and isinstance(call, relax.Call) and call.op == call_tir:
                name = f"{call.args[0].name_hint}{MARK}{owner}{END}"
                kernel = module[call.args[0]].with_attr("edgeq.node", name)  # equal functions would become one
                own = self.builder_.add_func(kernel, name)
                call = relax.Call(call_tir, [own, *call.args[1:]], call.attrs, call.ty_args)
                binding = relax.VarBinding(binding.var, call)
            super().visit_var_binding_(binding)

    marker = Marker(module)
    changed = marker.visit_expr(module["main"])
    marked = marker.builder_.get()
    marked["main"] = changed
    return marked


def told(calls: Sequence[str]) -> list[tuple[str, ...]]:
    """Of each call in the fused twin, by its kernel's name, the nodes that it computes."""
    return [tuple(part.split(END)[0] for part in name.split(MARK)[1:]) for name in calls]
