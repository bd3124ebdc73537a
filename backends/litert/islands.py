"""Float islands: litert-torch converts all of them in one go, and their operators move into the integer model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from edgeq.backends.litert.decompositions import rewritten
from edgeq.backends.litert.flatbuffer import RUNTIME, ModelWriter
from edgeq.graph.coded import Coded
from edgeq.graph.integer import DEQUANTIZE, DEQUANTIZE_WEIGHT, IntegerProgram, coded_weight
from edgeq.graph.kinds import role_of, weights_of
from edgeq.graph.ops import constant, kind_of, value
from edgeq.graph.quiet import quiet
from edgeq.spec import EdgeqError

MARK = "edgeq_node_"  # before a node's name, in the names litert-torch gives
LAYOUT = (22, 39)  # RESHAPE and TRANSPOSE in the schema's BuiltinOperator
ISLAND = "island/"  # before the index of an island's tensor, in the finished file


def cut_out(program: IntegerProgram, wanted: Sequence[Node]) -> tuple[GraphModule, list[Node]]:
    """The float computation behind the nodes `wanted` as a module of its own.

    Returns it and the nodes whose values it takes, in the order of its arguments: placeholders of the program, and
    for each integer tensor that an island reads one of its dequantize nodes. Int8 weights stand in it as floats.
    """
    graph = Graph()
    module = GraphModule(torch.nn.Module(), graph)
    members = _behind(wanted)
    inputs: list[Node] = []
    made: dict[Node, Node] = {}
    by_source: dict[Node, Node] = {}
    for node in program.module.graph.nodes:  # arguments come first
        if node not in members or not _is_input(node):
            continue
        source = node.args[0] if node.target is DEQUANTIZE else node
        assert isinstance(source, Node)
        if source not in by_source:
            by_source[source] = graph.placeholder(f"input_{len(inputs)}")
            inputs.append(node)
        made[node] = by_source[source]
    for node in program.module.graph.nodes:
        if node not in members or node in made:
            continue
        if node.op == "get_attr" or node.target in DEQUANTIZE_WEIGHT:
            name = f"constant_{len(made)}"
            tensor = (
                constant(program.module, node) if node.op == "get_attr" else coded_weight(program.module, node).decode()
            )
            module.register_buffer(name, tensor.contiguous())
            made[node] = graph.get_attr(name)
        else:
            name = f"{MARK}{node.name}"
            module.add_submodule(name, _Operator(rewritten(node) or node.target))
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: made[n])
            made[node] = graph.call_module(name, args, kwargs)
    graph.output(tuple(made[n] for n in wanted))
    module.graph = graph
    module.recompile()
    return module, inputs


def convert(module: GraphModule, inputs: Sequence[Node]) -> Any:
    """`module` as a LiteRT model (schema object), through litert-torch.

    Raises:
        EdgeqError: the package is missing, or an operator has no LiteRT form.
    """
    examples = tuple(torch.zeros(tuple(value(n).shape), dtype=value(n).dtype) for n in inputs)
    with quiet():
        try:
            import litert_torch
        except ImportError as error:
            raise EdgeqError("the litert backend needs litert-torch: pip install 'edgeq[litert]'") from error
        from ai_edge_litert import schema_py_generated as schema

        try:
            converted = litert_torch.convert(_Module(module).eval(), examples)
            raw = converted.model_content()
        except Exception as error:  # the converter raises whatever its passes raise
            raise EdgeqError(f"litert-torch cannot convert a float part of the network: {_condense(error)}") from error
    return schema.ModelT.InitFromPackedBuf(raw, 0)


class _Operator(torch.nn.Module):
    """One operator as a module, because litert-torch names what it makes of it after the path of its module."""

    def __init__(self, target: Any) -> None:
        super().__init__()
        self.target = target

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.target(*args, **kwargs)


class _Module(torch.nn.Module):
    """litert-torch calls eval(), which exported graph modules may refuse."""

    def __init__(self, inner: GraphModule) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Tensor) -> Any:
        return self.inner(*args)


def merge(writer: ModelWriter, model: Any, inputs: Sequence[int]) -> list[int]:
    """Move the operators of `model` into `writer`, reading its tensors `inputs`. Returns the tensors it computes.

    litert-torch makes 64-bit integers 32-bit ones; a CAST leads into them.
    """
    main = model.subgraphs[0]
    signature = model.signatureDefs[0]
    position = {int(m.tensorIndex): int(m.name.decode().rsplit("_", 1)[1]) for m in signature.inputs}
    for entry in model.metadata or ():
        if entry.name == RUNTIME:
            writer.runtimes.add(bytes(model.buffers[entry.buffer].data).rstrip(b"\0").decode() or "1.5.0")
    codes = [
        writer.code(c.builtinCode or c.deprecatedBuiltinCode, c.customCode or b"", c.version)
        for c in model.operatorCodes
    ]
    buffers = [0 if b.data is None or len(b.data) == 0 else writer.buffer(np.asarray(b.data)) for b in model.buffers]
    mapped: dict[int, int] = {-1: -1}
    for index, tensor in enumerate(main.tensors):
        if index in position:
            mapped[index] = cast(writer, inputs[position[index]], tensor.type)
            continue
        tensor.buffer = buffers[tensor.buffer]
        tensor.name = f"{ISLAND}{index}".encode()  # litert-torch's names are long; `origins` keeps what they tell
        writer.tensors.append(tensor)
        mapped[index] = len(writer.tensors) - 1
    for graph in (main, *model.subgraphs[1:]):
        for op in graph.operators or ():
            op.opcodeIndex = codes[op.opcodeIndex]
    for op in main.operators or ():
        op.inputs = np.asarray([mapped[int(t)] for t in op.inputs], np.int32)
        op.outputs = np.asarray([mapped[int(t)] for t in op.outputs], np.int32)
        writer.operators.append(op)
    for graph in model.subgraphs[1:]:
        for tensor in graph.tensors:
            tensor.buffer = buffers[tensor.buffer]
        writer.others.append(graph)
    outputs = {int(m.name.decode().rsplit("_", 1)[1]): int(m.tensorIndex) for m in signature.outputs}
    return [mapped[outputs[i]] for i in range(len(outputs))]


def origins(model: Any, module: GraphModule) -> dict[str, tuple[str, ...]]:
    """Tensor that an island's operator writes, by its name after `merge` → names of the nodes it computes, in their order.

    Each of litert-torch's names tells all nodes that were fused, and those whose constants are shared: of the latter, nothing
    is kept that leads another operator's name, or stood in one before. Outputs have other names; theirs is the node given
    back. A node that no name tells goes to an operator that computes what reads it.
    """
    main = model.subgraphs[0]
    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    order = [str(n.target).removeprefix(MARK) for n in module.graph.nodes if n.op == "call_module"]
    given = [str(n.target).removeprefix(MARK) for n in module.graph.output_node().all_input_nodes]
    outputs = {int(m.tensorIndex): int(m.name.decode().rsplit("_", 1)[1]) for m in model.signatureDefs[0].outputs}
    told: dict[int, list[str]] = {}
    leading, moves = set(), set()
    for op in main.operators or ():
        index = int(op.outputs[0])
        told[index] = re.findall(rf"_{MARK}(\w+)", (main.tensors[index].name or b"").decode())
        if not told[index] and index in outputs:
            told[index] = [given[outputs[index]]]
        if codes[op.opcodeIndex] in LAYOUT:
            moves.add(index)
        else:
            leading.update(told[index][:1])
    owner: dict[str, int] = {}
    found: dict[int, list[str]] = {}
    for index, names in told.items():
        found[index] = [n for i, n in enumerate(names) if i == 0 or (n not in leading and n not in owner)]
        owner.update((n, index) for n in found[index] if n not in owner and index not in moves)
    told_of = {name for names in found.values() for name in names}
    for node in reversed(module.graph.nodes):
        name = str(node.target).removeprefix(MARK)
        readers = [str(user.target).removeprefix(MARK) for user in node.users]
        taken = next((owner[reader] for reader in readers if reader in owner), None)
        if node.op == "call_module" and name not in told_of and taken is not None:
            owner[name] = taken
            found[taken].append(name)
    return {f"{ISLAND}{index}": tuple(sorted(set(names), key=order.index)) for index, names in found.items()}


def cast(writer: ModelWriter, index: int, dtype: int) -> int:
    """Tensor `index` as `dtype` (a code of the schema's TensorType)."""
    source = writer.tensors[index]
    if source.type == dtype:
        return index
    types = {code: name for name, code in vars(writer.schema.TensorType).items() if not name.startswith("_")}
    out = writer.tensor(f"{source.name.decode()}_{types[dtype].lower()}", source.shape, types[dtype])
    options = {"inDataType": source.type, "outDataType": dtype}
    writer.operator("CAST", [index], [out], table="CastOptions", **options)
    return out


def weight_only(program: IntegerProgram) -> list[tuple[Node, Coded]]:
    """Operators that compute in float with integer weights, and these."""
    found = []
    for node in program.floats:
        kind = kind_of(node)
        source = node.args[weights_of(kind).weight] if role_of(kind) == "layer" else None
        if isinstance(source, Node) and source.target in DEQUANTIZE_WEIGHT:
            found.append((node, coded_weight(program.module, source)))
    return found


def fold_weights(
    writer: ModelWriter,
    weights: Sequence[tuple[Node, Coded]],
    layers: Mapping[str, str],
    told: Mapping[str, Sequence[str]],
) -> None:
    """Give the constants of islands that are an operator's integer weights their int8 form back, behind a DEQUANTIZE operator.

    The interpreter dequantises such a constant once, when it loads the file. layers: node name → layer key. told: tensor that an
    island's operator writes → names of the nodes that it computes (`origins`); several nodes may share their weights.

    Raises:
        EdgeqError: an operator does not read its weights any more.
    """
    readers: dict[str, list[Any]] = {}
    made = {int(op.outputs[0]): op for op in writer.operators}
    for index, op in made.items():
        for name in told.get(writer.tensors[index].name.decode(), ()):
            readers.setdefault(name, []).append(op)
    folded: dict[int, Tensor] = {}
    for node, coded in weights:
        own = readers.get(node.name, [])
        written = {int(i) for op in own for i in op.outputs}
        fused = [
            op for op in made.values() if written & {int(i) for i in op.inputs}
        ]  # a pad before a kernel with a clip
        inputs = {int(i) for op in (*own, *fused) for i in op.inputs}
        inputs |= {
            int(i) for index in inputs & made.keys() for i in made[index].inputs
        }  # a product that two layers share
        known = any(torch.equal(folded[index], coded.codes) for index in inputs & folded.keys())
        if not known and not _fold(writer, node.name, coded, inputs - {-1}, folded):
            layer = layers.get(node.name, node.name)
            raise EdgeqError(
                f"{layer}: litert-torch changed its weights, so they cannot stay int8; set its layer to fp32"
            )


def _fold(writer: ModelWriter, name: str, coded: Coded, inputs: Iterable[int], folded: dict[int, Tensor]) -> bool:
    """Fold the one of the tensors `inputs` that holds the weights, in whatever order of axes; whether there is one."""
    real, rank = coded.decode().numpy(), coded.codes.dim()
    axis = next((a for a, size in enumerate(coded.scale.shape) if size > 1), 0)
    for index in sorted(inputs):
        tensor = writer.tensors[index]
        data = writer.buffers[tensor.buffer].data if tensor.buffer else None
        if tensor.type != writer.schema.TensorType.FLOAT32 or data is None or len(data) != real.nbytes:
            continue
        floats = np.frombuffer(bytes(data), np.float32)
        for order in _orders(rank):
            if not np.array_equal(np.ascontiguousarray(real.transpose(order)).ravel(), floats):
                continue
            final = tuple(int(d) for d in tensor.shape)
            integers = np.ascontiguousarray(coded.codes.numpy().transpose(order)).reshape(final)
            at = _axis_of(final, order.index(axis), [coded.codes.shape[a] for a in order])
            if at is None:
                continue
            scales = coded.scale.flatten().numpy()
            small = writer.tensor(f"{name}_weight", final, "int8", scales, axis=at, data=integers)
            tensor.buffer = 0
            writer.operator("DEQUANTIZE", [small], [index], table="DequantizeOptions")
            folded[index] = coded.codes
            return True
    return False


def _orders(rank: int) -> list[tuple[int, ...]]:
    """The axis orders converters store weights in."""
    orders: dict[int, list[tuple[int, ...]]] = {
        2: [(0, 1), (1, 0)],
        3: [(0, 1, 2), (0, 2, 1), (1, 2, 0)],
        4: [(0, 1, 2, 3), (0, 2, 3, 1), (1, 2, 3, 0), (2, 3, 0, 1), (2, 3, 1, 0)],
    }
    return orders[rank]


def _axis_of(shape: Sequence[int], axis: int, before: Sequence[int]) -> int | None:
    """Where axis `axis` of `before` went in `shape`, which may only have axes of size 1 added or left out."""
    if [d for d in shape if d != 1] != [d for d in before if d != 1]:
        return None
    if before[axis] == 1:
        return 0
    ordinal = sum(d != 1 for d in before[:axis])
    return [i for i, d in enumerate(shape) if d != 1][ordinal]


def _behind(wanted: Sequence[Node]) -> set[Node]:
    found: set[Node] = set()
    pending = list(wanted)
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        if not _is_input(node) and node.target not in DEQUANTIZE_WEIGHT:
            pending.extend(node.all_input_nodes)
    return found


def _is_input(node: Node) -> bool:
    return node.op == "placeholder" or node.target is DEQUANTIZE


def _condense(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if "not implemented" in line.lower() or "unsupported" in line.lower() or "Lowering not found" in line
    ]
    return (telling or lines or [type(error).__name__])[0][:300]
