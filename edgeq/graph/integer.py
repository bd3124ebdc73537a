"""Read a QDQ program back as integer operators: what the simulation executes and what an integer lowering emits.

A QDQ program states each integer operator as dequantize → operator (→ activation) → quantize. `read` finds every
such group; whatever is left over is a float island.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the quantized_decomposed operators
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgeq.graph.blocks import DEQUANTIZE_BLOCKS
from edgeq.graph.coded import Coded, along
from edgeq.graph.curves import Curve, behind, entries
from edgeq.graph.kinds import role_of, weights_of
from edgeq.graph.limits import LIMITS
from edgeq.graph.ops import (
    clip_bounds,
    constant,
    conv_attrs,
    data_inputs,
    integral,
    kind_of,
    node_arg,
    table,
)
from edgeq.spec import CHANNEL, TENSOR, Grid, QParams, Tile

qd = torch.ops.quantized_decomposed
QUANTIZE = qd.quantize_per_tensor.default
DEQUANTIZE = qd.dequantize_per_tensor.default
DEQUANTIZE_CHANNEL = qd.dequantize_per_channel.default
DEQUANTIZE_WEIGHT = (DEQUANTIZE_CHANNEL, DEQUANTIZE_BLOCKS)


@dataclass(frozen=True, slots=True)
class IntegerOp:
    """One operator from integers to integers.

    name: the quantize node that ends the group; its value in the program is this operator's int8 output.
    layer: its layer key, as people know it; the name where that is not known.
    inputs: names of the int8 values read (quantize nodes, or int8 inputs of the program).
    weight: int8 in torch's own layout ([C_out, C_in/groups, ...]; transposed convolution [C_in, C_out/groups, ...]).
    weight_scale: float32 [C_out], zero points are all 0.  bias: int64 [C_out] within int32, in units of
        input scale × weight scale.
    attrs: ConvAttrs of a convolution, else None: read `node` (the aten call) instead.
    low, high: clip bounds of the output integers; a fused activation has narrowed them.
    table: the program's input that a gather picks its rows by, flattened; its scales before and after are the same.
    entries: of a curve its output for each input from the lowest on, int64; None where that is no number.
    """

    name: str
    layer: str
    kind: str
    node: Node
    inputs: tuple[str, ...]
    input_qparams: tuple[QParams, ...]
    output_qparams: QParams
    low: int
    high: int
    weight: Tensor | None = None
    weight_scale: Tensor | None = None
    bias: Tensor | None = None
    attrs: Any = None
    absorbed: tuple[str, ...] = ()
    table: Node | None = None
    entries: Tensor | None = None


@dataclass(frozen=True, slots=True)
class IntegerProgram:
    """A QDQ program with its integer operators found.

    module: the program with parameters as attributes; inputs and outputs in the order of its graph.
    ops: quantize node name → integer operator. A quantize node not in `ops` quantizes a float value.
    floats: nodes that compute in float (the islands), in order; quantize, dequantize, constants and what reshapes
        tables left out.
    """

    module: GraphModule
    ops: dict[str, IntegerOp]
    floats: tuple[Node, ...]


def read(program: ExportedProgram, labels: Mapping[str, str] = {}) -> IntegerProgram:
    """Group the nodes of a QDQ program into integer operators and float islands. labels: node name → layer key."""
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    ops: dict[str, IntegerOp] = {}
    for node in module.graph.nodes:
        if node.target is QUANTIZE and (op := _group(module, node, labels)) is not None:
            ops[node.name] = op
    return IntegerProgram(module, ops, _floats(module, ops))


def without(
    program: IntegerProgram,
    kinds: Set[str] = frozenset(),
    limited: Mapping[str, str] = MappingProxyType({}),
    keep: Callable[[IntegerOp], bool] = lambda op: False,
) -> IntegerProgram:
    """`program` for a runtime that has no integer kernels of `kinds`: such an operator between two integers is an island.

    limited: kind → the name of what its kernel cannot take (edgeq.graph.limits); an operator beyond that is an island too.
    keep: which of the operators of `kinds` stay.
    """

    def beyond(op: IntegerOp) -> bool:
        return (op.kind in kinds and not keep(op)) or (
            op.kind in limited and LIMITS[limited[op.kind]](op.node) is not None
        )

    ops = {name: op for name, op in program.ops.items() if not beyond(op)}
    return IntegerProgram(program.module, ops, _floats(program.module, ops))


def _floats(module: GraphModule, ops: Mapping[str, IntegerOp]) -> tuple[Node, ...]:
    plumbing = {QUANTIZE, DEQUANTIZE, *DEQUANTIZE_WEIGHT, torch.ops.aten._assert_tensor_metadata.default}
    absorbed = {name for op in ops.values() for name in op.absorbed}
    return tuple(
        n
        for n in module.graph.nodes
        if n.op == "call_function" and n.target not in plumbing and n.name not in absorbed and not integral(n)
    )


def members(program: IntegerProgram, labels: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Node name → keys of all layers that its kernel computes: of an integer operator also what is fused into it."""
    found: dict[str, tuple[str, ...]] = {name: (key,) for name, key in labels.items()}
    for op in program.ops.values():
        names = (op.name, *op.absorbed)
        keys = tuple(dict.fromkeys(labels[n] for n in names if n in labels))
        found.update((name, keys) for name in names if keys)
    return found


def tensor_qparams(node: Node) -> QParams:
    """Scale and zero point of a quantize or dequantize node, per tensor."""
    _, scale, zero_point, qmin, qmax = node.args[:5]
    return QParams((float(scale),), (int(zero_point),), int(qmin), int(qmax))  # type: ignore[arg-type] # constants


def coded_weight(module: GraphModule, dequantize: Node) -> Coded:
    """The weights behind one of DEQUANTIZE_WEIGHT, with their grid."""
    codes, scale = (constant(module, n) for n in dequantize.args[:2] if isinstance(n, Node))
    zero, table = None, None
    if dequantize.target is DEQUANTIZE_CHANNEL:
        axis, qmin, qmax = (int(a) for a in dequantize.args[3:6])  # type: ignore[arg-type] # plain numbers
        scale = along(scale, axis, codes.dim())
    else:
        zero, table = (constant(module, n) if isinstance(n, Node) else None for n in dequantize.args[2:4])
        qmin, qmax = (int(a) for a in dequantize.args[4:6])  # type: ignore[arg-type] # plain numbers
    values = None if table is None else tuple(table.tolist())
    tile = Tile("group", size) if (size := _group_size(codes, scale)) else CHANNEL if scale.numel() > 1 else TENSOR
    grid = Grid(qmax.bit_length() + 1, zero is None, tile, qmin == -qmax - 1, values)
    return Coded(grid, codes, scale.to(torch.float32), zero)


def _group_size(codes: Tensor, scale: Tensor) -> int:
    """How many neighbours share a scale; 0 where all along an axis do, or none."""
    return next((n // k for n, k in zip(codes.shape, scale.shape, strict=True) if 1 < k < n), 0)


def quantize_bound(bound: float, qparams: QParams) -> int:
    """A real clip bound on the integer grid: zero point + round half away from zero (TFLite's TfLiteRound)."""
    ratio = bound / qparams.step
    rounded = int(ratio + 0.5) if ratio >= 0 else -int(-ratio + 0.5)
    return max(qparams.qmin, min(qparams.qmax, qparams.zero + rounded))


def _group(module: GraphModule, quantize: Node, labels: Mapping[str, str]) -> IntegerOp | None:
    """The integer operator that ends in `quantize`, or None where a float value is quantized."""
    out, layer = tensor_qparams(quantize), labels.get(quantize.name, quantize.name)
    low, high = out.qmin, out.qmax
    node = quantize.args[0]
    assert isinstance(node, Node)
    absorbed = [node.name]
    kind = kind_of(node)
    if node.target is DEQUANTIZE:  # int8 → int8 with other numbers
        (source,) = node.all_input_nodes
        numbers = (tensor_qparams(node),)
        return IntegerOp(
            quantize.name, layer, "requantize", node, (source.name,), numbers, out, low, high, absorbed=(node.name,)
        )
    chain = behind(node, DEQUANTIZE)
    if chain is not None and (len(chain.nodes) > 1 or kind is None or role_of(kind) == "curve"):
        return _curve(module, quantize, chain, kind, labels)
    inner = node.args[0] if role_of(kind) == "clip" else None
    if kind is not None and isinstance(inner, Node) and inner.target is not DEQUANTIZE and len(inner.users) == 1:
        inner_kind = kind_of(inner)
        if inner_kind is not None:
            low, high = _narrow(node, kind, out, low, high)
            node, kind = inner, inner_kind
            absorbed.append(node.name)
    if kind is None or len(node.users) != 1:
        return None
    sources = data_inputs(node, kind)
    if not sources or any(s.target is not DEQUANTIZE for s in sources):
        return None
    in_qparams = tuple(tensor_qparams(s) for s in sources)
    if kind == "gather" and in_qparams != (out,):
        return None
    weights = _weights(module, node, kind, in_qparams[0]) if role_of(kind) == "layer" else (None, None, None)
    if weights is None:
        return None
    weight, scale, bias = weights
    if role_of(kind) == "clip":
        low, high = _narrow(node, kind, out, low, high)
    names = tuple(s.all_input_nodes[0].name for s in sources)
    return IntegerOp(
        quantize.name,
        layer,
        kind,
        node,
        names,
        in_qparams,
        out,
        low,
        high,
        weight,
        scale,
        bias,
        conv_attrs(node, kind) if "conv" in kind else None,
        tuple(absorbed),
        table(node) if kind == "gather" else None,
    )


def _curve(
    module: GraphModule, quantize: Node, chain: Curve, kind: str | None, labels: Mapping[str, str]
) -> IntegerOp | None:
    """A curve between two grids; None where it is a float island that stands between integers."""
    node, given, made = chain.nodes[-1], tensor_qparams(chain.source), tensor_qparams(quantize)
    if len(node.users) != 1 or (labels and quantize.name not in labels):
        return None
    return IntegerOp(
        quantize.name,
        labels.get(quantize.name, quantize.name),
        kind if kind is not None and len(chain.nodes) == 1 else "curve",
        node,
        (chain.source.all_input_nodes[0].name,),
        (given,),
        made,
        made.qmin,
        made.qmax,
        absorbed=tuple(n.name for n in chain.nodes),
        entries=entries(module, chain, given, made, DEQUANTIZE),
    )


def _weights(
    module: GraphModule, node: Node, kind: str, source: QParams
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """A layer's integer weights, their scales, and its bias as integers on the grid of its input's scale times these."""
    where = weights_of(kind)
    dequantize = node.args[where.weight]
    if not isinstance(dequantize, Node) or dequantize.target is not DEQUANTIZE_CHANNEL:
        return None
    stored, scales, _, at = dequantize.args[:4]
    assert isinstance(stored, Node) and isinstance(scales, Node) and at == where.axis
    scale, bias_node = constant(module, scales).to(torch.float32), node_arg(node, where.bias, None)
    if bias_node is None:
        return constant(module, stored), scale, None
    unit = scale.double() * source.step
    return constant(module, stored), scale, torch.round(constant(module, bias_node).double() / unit).long()


def _narrow(node: Node, kind: str, out: QParams, low: int, high: int) -> tuple[int, int]:
    """Clip bounds after an activation node."""
    lower, upper = clip_bounds(node, kind)
    low = low if lower is None else max(low, quantize_bound(lower, out))
    high = high if upper is None else min(high, quantize_bound(upper, out))
    return low, high
