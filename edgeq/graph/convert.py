"""Turn a captured float network and its resolved numbers into one QDQ ExportedProgram."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from operator import getitem

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgeq.graph.annotate import Annotation, Group
from edgeq.graph.blocks import DEQUANTIZE_BLOCKS
from edgeq.graph.capture import Captured
from edgeq.graph.coded import Coded, holds
from edgeq.graph.integer import DEQUANTIZE, DEQUANTIZE_CHANNEL, QUANTIZE, read
from edgeq.graph.kinds import role_of, weights_of
from edgeq.graph.legal import check
from edgeq.graph.numbers import Resolved, snap_bias
from edgeq.graph.ops import constant, kind_of, node_arg, set_constant
from edgeq.graph.quiet import quiet
from edgeq.graph.rules import IllegalProgram, Said, broken
from edgeq.spec import QParams


def convert(captured: Captured, annotation: Annotation, resolved: Resolved) -> tuple[ExportedProgram, dict[str, str]]:
    """Insert quantize and dequantize nodes and export. `captured` stays as it was.

    Returns the program and its node name → layer key map (an integer operator's nodes, its quantize included, carry
    the operator's key).

    Raises:
        IllegalNumbers: an operator's kernel does not take the numbers; a fault of whoever chose them.
        IllegalProgram: what came of them breaks a rule; a fault here.
    """
    check(annotation, resolved)
    with quiet():  # copying a graph warns about torch's own internals
        module, mapped = _copy(captured.module, resolved.constants)
    graph = module.graph
    labels = {mapped[n]: captured.keys[n.name] for n in captured.module.graph.nodes if n.name in captured.keys}
    for group in annotation.groups:
        if role_of(group.kind) == "layer":
            in_qparams = resolved.activations[annotation.tensors.key(group.inputs[0])]
            _quantize_weight(module, mapped[group.node], group.key, group.kind, resolved, in_qparams)
    for key, (node, _) in annotation.weight_only.items():
        _quantize_weight(module, mapped[node], key, kind_of(node) or "", resolved, None)
    for node in annotation.halves:
        _half(module, mapped[node])
    for tensor in annotation.tensors.parent:
        qparams = resolved.activations[annotation.tensors.key(tensor)]
        _quantize_tensor(graph, mapped[tensor], tensor, qparams, annotation, mapped, labels)
    for group in annotation.groups:
        for source in dict.fromkeys(group.inputs):
            if (group.key, source) in annotation.apart:
                shared = resolved.activations[annotation.tensors.key(group.output)]
                _requantize(graph, mapped[group.node], mapped[source], shared, group.key, labels)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    program, keys = export(module, captured.example, labels)
    plan = {g.key: g.precision.name for g in annotation.groups}
    plan |= {key: wanted.name for key, (_, wanted) in annotation.weight_only.items()}
    plan |= {captured.keys[n.name]: "fp16" for n in annotation.halves}
    if wrong := broken(read(program, keys), Said(plan, annotation.islands, keys)):
        raise IllegalProgram(wrong)
    return program, keys


def export(
    module: GraphModule, example: tuple[Tensor, ...], labels: dict[Node, str]
) -> tuple[ExportedProgram, dict[str, str]]:
    """torch.export `module` and carry `labels` (node → layer key) over to the program's nodes, which keep their order.

    The example lies in torch's own order: converters read the order of a program's inputs in memory off it.
    """
    _drop_unused(module)
    with quiet():
        program = torch.export.export(module, tuple(t.contiguous() for t in example), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("from_node", None)  # it holds addresses of this process: the same task is to give the same bytes
    return program, {new.name: labels[old] for old, new in _pairs(module, program) if old in labels}


def _drop_unused(module: GraphModule) -> None:
    """Remove parameters and buffers that no node reads, the float originals of quantized weights above all."""
    read = {str(n.target) for n in module.graph.nodes if n.op == "get_attr"}
    for name in [n for n, _ in (*module.named_parameters(), *module.named_buffers()) if n not in read]:
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)


def _pairs(module: GraphModule, program: ExportedProgram) -> list[tuple[Node, Node]]:
    """Nodes before and after export: the n-th call of an operator stays the n-th (what export spells otherwise is left
    out). A result of several is found by its place among them: export adds those that nobody reads."""
    before: dict[object, list[Node]] = {}
    after: dict[object, list[Node]] = {}
    for graph, calls in ((module.graph, before), (program.graph, after)):
        for node in graph.nodes:
            if node.op == "call_function":
                calls.setdefault(node.target, []).append(node)
    same = [target for target, nodes in before.items() if len(nodes) == len(after.get(target, ()))]
    found = {old: new for t in same if t is not getitem for old, new in zip(before[t], after[t], strict=True)}
    results = {new.args: new for new in after.get(getitem, ())}
    for old in before.get(getitem, ()):
        source, index = old.args
        assert isinstance(source, Node)
        if source in found and (found[source], index) in results:
            found[old] = results[found[source], index]
    return list(found.items())


def float_program(captured: Captured, resolved: Resolved | None = None) -> tuple[ExportedProgram, dict[str, str]]:
    """The captured network as a plain float program: the twin that int8 is timed beside.

    resolved: whose constants stand in the place of the network's own; its answers are the same.
    """
    with quiet():  # copying a graph warns about torch's own internals
        module, mapped = _copy(captured.module, {} if resolved is None else resolved.constants)
    labels = {mapped[n]: captured.keys[n.name] for n in captured.module.graph.nodes if n.name in captured.keys}
    return export(module, captured.example, labels)


def _copy(module: GraphModule, constants: Mapping[str, Tensor]) -> tuple[GraphModule, dict[Node, Node]]:
    """A copy with `constants` (see Resolved) in their places, and which of its nodes is which."""
    twin = copy.deepcopy(module)
    mapped = dict(zip(module.graph.nodes, twin.graph.nodes, strict=True))
    for node, new in mapped.items():
        new.meta = copy.copy(node.meta)
    for node, new in mapped.items():
        for index, argument in enumerate(node.args):
            held = constants.get(f"{node.name} {index}")
            if held is not None:
                assert isinstance(argument, Node)
                with twin.graph.inserting_before(new):
                    part = "weight" if index == 1 else "bias"
                    new.update_arg(index, set_constant(twin, f"{node.name}_{part}", held))
    return twin, mapped


def _quantize_weight(
    module: GraphModule,
    node: Node,
    key: str,
    kind: str,
    resolved: Resolved,
    in_qparams: QParams | None,
) -> None:
    """int8 weights behind a dequantize node; with quantized inputs the bias moves onto its int32 grid."""
    at = weights_of(kind)
    weight_node, bias_node = node.args[at.weight], node_arg(node, at.bias, None)
    assert isinstance(weight_node, Node)
    bias = resolved.biases.get(key, constant(module, bias_node)) if isinstance(bias_node, Node) else None
    coded = resolved.weights[key]
    args = list(node.args) + [None] * (at.bias + 1 - len(node.args))
    with module.graph.inserting_before(node):
        args[at.weight] = _dequantized(module, str(weight_node.target), coded, at.axis)
        if bias is not None:
            if in_qparams is not None:
                bias = snap_bias(bias, coded.scale.reshape(-1), in_qparams.step)
            args[at.bias] = set_constant(module, f"{weight_node.target}_bias", bias)
    node.args = tuple(args)


def _dequantized(module: GraphModule, name: str, coded: Coded, axis: int) -> Node:
    """The codes behind the operator that makes floats of them: quantized_decomposed's where it can say their scales."""
    ends = coded.grid.qmin, coded.grid.qmax
    stored = set_constant(module, f"{name}_{str(coded.codes.dtype).removeprefix('torch.')}", coded.codes)
    channels = coded.scale.numel() == coded.scale.shape[axis] == coded.codes.shape[axis]
    if channels and coded.zero is None and coded.grid.table is None:
        scale = coded.scale.reshape(-1)
        scales = set_constant(module, f"{name}_scale", scale)
        zeros = set_constant(module, f"{name}_zero_point", torch.zeros(scale.numel(), dtype=torch.int64))
        return module.graph.call_function(DEQUANTIZE_CHANNEL, (stored, scales, zeros, axis, *ends, coded.codes.dtype))
    scales = set_constant(module, f"{name}_scale", coded.scale)
    zero = None if coded.zero is None else set_constant(module, f"{name}_zero_point", coded.zero)
    table = None if coded.grid.table is None else set_constant(module, f"{name}_table", torch.tensor(coded.grid.table))
    return module.graph.call_function(DEQUANTIZE_BLOCKS, (stored, scales, zero, table, *ends))


def _half(module: GraphModule, node: Node) -> None:
    """Compute one operator in float16 between float32 neighbours."""
    graph = module.graph

    def cast(source: Node, dtype: torch.dtype) -> Node:
        made = graph.call_function(torch.ops.aten._to_copy.default, (source,), {"dtype": dtype})
        made.meta["val"] = source.meta["val"].to(dtype)
        return made

    with graph.inserting_before(node):
        for source in list(node.all_input_nodes):
            if source.meta["val"].dtype == torch.float32:
                node.replace_input_with(source, cast(source, torch.float16))
    users = list(node.users)
    with graph.inserting_after(node):
        back = cast(node, torch.float32)
    for user in users:
        user.replace_input_with(node, back)


def _quantize_tensor(
    graph: torch.fx.Graph,
    producer: Node,
    tensor: Node,
    qparams: QParams,
    annotation: Annotation,
    mapped: dict[Node, Node],
    labels: dict[Node, str],
) -> None:
    """One quantize behind `producer`, one dequantize for each edge that reads the integers.

    A tensor computed as integers is read as integers by everybody; a float tensor only by the integer operators.
    """
    makers = {g.output: g for g in annotation.groups}
    readers: dict[Node, list[Group]] = {}
    for group in annotation.groups:
        for source in group.inputs:
            readers.setdefault(source, []).append(group)
    maker = makers.get(tensor)
    users = list(producer.users) if maker else [mapped[g.node] for g in readers.get(tensor, [])]
    numbers = _numbers(qparams)
    with graph.inserting_after(producer):
        quantize = graph.call_function(QUANTIZE, (producer, *numbers))
    if maker is not None:
        labels[quantize] = maker.key
    for user in dict.fromkeys(users):
        _replace_edges(graph, user, producer, quantize, numbers)


def _requantize(
    graph: torch.fx.Graph, user: Node, source: Node, qparams: QParams, key: str, labels: dict[Node, str]
) -> None:
    """Bring what `user` (layer `key`) reads of `source`, which has numbers of its own, to the numbers `qparams`."""
    for edge in [n for n in user.all_input_nodes if n.target is DEQUANTIZE and _quantized(n) is source]:
        with graph.inserting_before(user):
            quantize = graph.call_function(QUANTIZE, (edge, *_numbers(qparams)))
            again = graph.call_function(DEQUANTIZE, (quantize, *_numbers(qparams)))
        user.replace_input_with(edge, again)
        labels[quantize] = key


def _quantized(dequantize: Node) -> object:
    """The node whose value the integers behind a dequantize node stand for."""
    (quantize,) = dequantize.all_input_nodes
    return quantize.args[0]


def _numbers(qparams: QParams) -> tuple[float | int | torch.dtype, ...]:
    """What follows the tensor in a quantize or dequantize call."""
    return qparams.step, qparams.zero, qparams.qmin, qparams.qmax, holds(qparams.qmin, qparams.qmax)


def _replace_edges(graph: torch.fx.Graph, user: Node, old: Node, quantize: Node, numbers: tuple[object, ...]) -> None:
    def edge(argument: Node) -> Node:
        if argument is not old:
            return argument
        with graph.inserting_before(user):
            return graph.call_function(DEQUANTIZE, (quantize, *numbers))  # type: ignore[arg-type] # plain numbers

    user.args = torch.fx.map_arg(user.args, edge)
    user.kwargs = torch.fx.map_arg(user.kwargs, edge)
