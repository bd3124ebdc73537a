"""One spelling per operator: graphs inside operators opened, views as reshapes, what changes nothing gone."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeq.graph.ops import node_arg, set_constant, value

aten = torch.ops.aten

# operators that only run a graph of their own, under no_grad, autocast or a checkpoint
HOLDERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint", "wrap", "hints_wrapper")
# the same numbers in another shape; torch's view needs strides that a runtime's tensors do not have
VIEWS = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.view_as.default,
    aten.reshape_as.default,
    aten.unflatten.int,
    aten.squeeze.default,
)
TURNS = (
    aten.t.default,
    aten.numpy_T.default,
    aten.mT.default,
    aten.adjoint.default,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.moveaxis.int,
    aten.moveaxis.intlist,
)
# what an inference never does, or does to strides alone
NO_OPS = (
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)
# nothing where the result has its argument's shape and type
NOTHING_IF_SAME = (
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.broadcast_to.default,
    aten.repeat.default,
    aten.tile.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.narrow.default,
)
# operators of two numbers, of which a whole one is widened where the other is not, what TVM does not do for a scalar
PROMOTED = (
    *(aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.pow),
    *(aten.gt, aten.ge, aten.lt, aten.le, aten.eq, aten.ne),
    aten.where,
)
# numbers to choose from, which are constants for those runtimes that choose between tensors alone
CHOICES = (aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
# of truth values the same; coremltools has no other spelling
TRUTHS: dict[Any, Any] = {
    aten.__and__.Tensor: aten.logical_and.default,
    aten.__or__.Tensor: aten.logical_or.default,
    aten.__xor__.Tensor: aten.logical_xor.default,
    aten.bitwise_and.Tensor: aten.logical_and.default,
    aten.bitwise_or.Tensor: aten.logical_or.default,
    aten.bitwise_xor.Tensor: aten.logical_xor.default,
    aten.bitwise_not.default: aten.logical_not.default,
}
# of the first two alpha scales the first operand, of the others the second
SCALED = (aten.rsub.Tensor, aten.rsub.Scalar, aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
TABLE = 2**20  # elements of a constant that is computed on capture
TABLES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
# what they make has the shape and type of a tensor that they do not read
LIKE = (
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
)
# sums of truth values are whole numbers, which TVM adds up as truth values
COUNTS = (aten.cumsum.default, aten.sum.default, aten.sum.dim_IntList, aten.cumprod.default)


def open_graphs(module: GraphModule) -> None:
    """Operators that hold a graph of their own give way to its operators, however deep."""
    while holders := [n for n in module.graph.nodes if _holds(module, n) is not None]:
        for node in holders:
            _open(module, node)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()


def _holds(module: GraphModule, node: Node) -> int | None:
    """At which argument of `node` its graph stands; None where it is no operator of HOLDERS."""
    if node.op != "call_function" or getattr(node.target, "__name__", "") not in HOLDERS:
        return None
    for index, argument in enumerate(node.args):
        if isinstance(argument, Node) and argument.op == "get_attr":
            held = module.get_submodule(str(argument.target)) if "." not in str(argument.target) else None
            if isinstance(held, GraphModule):
                return index
    return None


def _open(module: GraphModule, node: Node) -> None:
    index = _holds(module, node)
    assert index is not None
    held_node = node.args[index]
    assert isinstance(held_node, Node)
    held = module.get_submodule(str(held_node.target))
    assert isinstance(held, GraphModule)
    given = node.args[index + 1 :]
    if len(given) == 3 and isinstance(given[0], (tuple, list)):  # a hints_wrapper's arguments, keywords and hints
        given = tuple(given[0])
    inside: dict[Node, Any] = dict(zip((n for n in held.graph.nodes if n.op == "placeholder"), given, strict=True))
    with module.graph.inserting_before(node):
        for inner in held.graph.nodes:
            if inner.op in ("placeholder", "output"):
                continue
            if inner.op == "get_attr":
                inside[inner] = _attribute(module, held, inner, node.name)
                continue
            copied = module.graph.node_copy(inner, lambda n: inside[n])
            copied.meta = {**inner.meta, "nn_module_stack": inner.meta.get("nn_module_stack") or _stack(node)}
            inside[inner] = copied
    results = torch.fx.map_arg(held.graph.output_node().args[0], lambda n: inside[n])
    for user in list(node.users):
        if user.target is operator.getitem and isinstance(results, (tuple, list)):
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index] # a number
            module.graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(results)  # type: ignore[arg-type] # a single result
    module.graph.erase_node(node)


def compute_tables(module: GraphModule) -> None:
    """What no input and no weight decides, as the sines of positions, is computed now and kept as a constant.

    Up to TABLE elements. Indices too: where a logarithm decides one, as T5's distances in buckets, a runtime's last bit is
    another row.
    """
    operators = [n for n in module.graph.nodes if n.op == "call_function"]
    if any(_mutates(n) for n in operators):  # what is a constant now may be written to later
        return
    values: dict[Node, Any] = {}
    with torch.no_grad():
        for node in operators:
            overload = node.target
            if isinstance(overload, torch._ops.OpOverload):
                if torch.Tag.nondeterministic_seeded in overload.tags:
                    continue
            elif overload is not operator.getitem:  # one result of several, as meshgrid's
                continue
            known = {n: _unread(n) for n in node.all_input_nodes} if overload in LIKE else values
            if all(n in known for n in node.all_input_nodes) and _size(node.meta.get("val")) <= TABLE:
                args, kwargs = torch.fx.map_arg((node.args, node.kwargs), known.__getitem__)
                values[node] = overload(*args, **kwargs)
    for node, table in values.items():
        useful = any(user not in values for user in node.users)
        if useful and isinstance(table, Tensor) and table.dtype in TABLES:
            with module.graph.inserting_before(node):
                constant = set_constant(module, f"{node.name}_table", table)
            node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in values)
    module.graph.eliminate_dead_code()


def _unread(node: Node) -> Tensor:
    return torch.empty(value(node).shape, dtype=value(node).dtype)


def _size(made: Any) -> float:
    """Elements of what an operator makes, one tensor or several; infinite where it makes anything else."""
    several = made if isinstance(made, (tuple, list)) else [made]
    return sum(each.numel() if isinstance(each, Tensor) else math.inf for each in several)


def _mutates(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _stack(node: Node) -> Any:
    return node.meta.get("nn_module_stack")


def _attribute(module: GraphModule, held: GraphModule, inner: Node, prefix: str) -> Node:
    """A constant or a deeper graph of an opened graph, as an attribute of the outer one."""
    found: Any = held
    for part in str(inner.target).split("."):
        found = getattr(found, part)
    name = f"{prefix}_{str(inner.target).replace('.', '_')}"
    if isinstance(found, torch.nn.Module):
        module.add_submodule(name, found)
    else:
        module.register_buffer(name, found)
    made = module.graph.get_attr(name)
    made.meta = dict(inner.meta)
    return made


def spell(module: GraphModule, node: Node) -> None:
    """Rewrite one node of `module` in its plain spelling, or leave it out where it changes nothing."""
    if getattr(node.target, "overloadpacket", None) in PROMOTED:
        _promote(module, node)
    if node.target is aten._assert_tensor_metadata.default:
        module.graph.erase_node(node)
    elif _changes_nothing(node):
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type] # a node, see _changes_nothing
        module.graph.erase_node(node)
    elif node.target in (aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default
    elif node.target in TRUTHS and value(node).dtype is torch.bool:
        node.target = TRUTHS[node.target]
    elif node.target in COUNTS and value(node.args[0]).dtype is torch.bool:
        node.args = (_cast(module, node, node.args[0], torch.int64), *node.args[1:])
    elif node.target in CHOICES:
        with module.graph.inserting_before(node):
            node.args = tuple(a if isinstance(a, Node) else _number(module, node, a) for a in node.args)
        node.target = aten.where.self
    elif node.target in VIEWS:
        node.target, node.args, node.kwargs = aten.reshape.default, (node.args[0], list(value(node).shape)), {}
    elif node.target in TURNS:
        node.target, node.args, node.kwargs = aten.permute.default, (node.args[0], _order(node)), {}
    elif node.target is aten.rrelu.default and not node_arg(node, 3, False):  # at inference its mean slope
        low, high = node_arg(node, 1, 1 / 8), node_arg(node, 2, 1 / 3)
        node.target, node.args, node.kwargs = aten.leaky_relu.default, (node.args[0], (low + high) / 2), {}
    elif node.target in SCALED and _alpha(node) != 1:
        _scale_apart(module, node)


def _alpha(node: Node) -> Any:
    return node.kwargs.get("alpha", node_arg(node, 2, 1))


def _scale_apart(module: GraphModule, node: Node) -> None:
    """a + alpha · b as a product and a sum: importers leave alpha out without a word, or refuse it."""
    first, second = node.args[:2]
    scaled = first if node.target in SCALED[:2] else second
    product: Any
    if isinstance(scaled, Node):
        with module.graph.inserting_before(node):
            product = module.graph.call_function(aten.mul.Tensor, (scaled, _alpha(node)))
        product.meta = {**node.meta, "val": value(scaled)}
    else:
        product = scaled * _alpha(node)
    node.args = (product, second) if scaled is first else (first, product)
    node.kwargs = {}


def _promote(module: GraphModule, node: Node) -> None:
    if node.target is aten.where.default:  # places, no choice between two
        return
    begin = int(getattr(node.target, "overloadpacket", None) is aten.where)  # behind its condition
    operands: list[Any] = list(node.args[begin : begin + 2])
    made = value(node).dtype
    if not made.is_floating_point and len(operands) == 2:  # what a comparison compares in
        made = torch.result_type(*(value(a) if isinstance(a, Node) else a for a in operands))
    if made.is_floating_point:
        for index, a in enumerate(operands, begin):
            if isinstance(a, Node) and not value(a).is_floating_point():
                node.update_arg(index, _cast(module, node, a, made))


def _cast(module: GraphModule, node: Node, source: Any, dtype: torch.dtype) -> Node:
    with module.graph.inserting_before(node):
        made = module.graph.call_function(aten.to.dtype, (source, dtype))
    made.meta = {**node.meta, "val": value(source).to(dtype)}
    return made


def _number(module: GraphModule, node: Node, number: Any) -> Node:
    return set_constant(module, f"{node.name}_number", torch.tensor(number, dtype=value(node).dtype))


def _order(node: Node) -> list[int]:
    """In which order a turning operator puts its tensor's axes, read off a tensor whose sizes are all different."""
    rank = value(node.args[0]).dim()
    marked = torch.empty(tuple(range(2, 2 + rank)), device="meta")
    turned: Tensor = node.target(marked, *node.args[1:], **node.kwargs)  # type: ignore[operator] # an aten operator
    return [size - 2 for size in turned.shape]


def _changes_nothing(node: Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or not isinstance(source.meta.get("val"), Tensor):
        return False
    if node.target in NO_OPS:
        return True
    made = node.meta.get("val")
    if not isinstance(made, Tensor) or made.shape != value(source).shape or made.dtype != value(source).dtype:
        return False
    if node.target in NOTHING_IF_SAME or node.target in VIEWS:
        return True
    if node.target in (aten.permute.default, aten.transpose.int):
        return _order(node) == list(range(made.dim()))
    if node.target is aten.slice.Tensor:
        return bool(node_arg(node, 4, 1) == 1)
    return _neutral(node)


def _neutral(node: Node) -> bool:
    """x + 0, x − 0, x · 1, x / 1 and x to the power of 1, as Python's sum() begins with 0."""
    other = node_arg(node, 1, None)
    if isinstance(other, bool) or not isinstance(other, (int, float)):
        return False
    if node.target in (aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar):
        return other == 0
    one = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.pow.Tensor_Scalar)
    return node.target in one and other == 1
