"""Exact rewrites into operators that XNNPACK's delegate takes, so that nothing runs between two delegate calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from edgeq.backends.executorch.spelled import SPELLED
from edgeq.graph.curves import smooth
from edgeq.graph.integer import DEQUANTIZE, DEQUANTIZE_CHANNEL, QUANTIZE, IntegerOp, coded_weight, read
from edgeq.graph.kinds import named, role_of, weights_of
from edgeq.graph.limits import xnnpack_average
from edgeq.graph.ops import (
    clip_bounds,
    constant,
    data_inputs,
    kind_of,
    node_arg,
    set_constant,
    value,
)
from edgeq.spec import QParams

aten = torch.ops.aten

FUSES_ANY = frozenset(named("layer"))  # they take both bounds; add takes relu; nothing else takes any
SHARED = frozenset({"cat", "max_pool2d", *named("move", "clip")})
LARGEST = 3.0e38  # stands for no bound where hardtanh wants a number


def rewrite(program: ExportedProgram, layers: Mapping[str, str]) -> tuple[GraphModule, dict[Node, str]]:
    """Rewrite a QDQ or float program; the function computed stays the same, bit for bit in its integers.

    layers: node name → layer key. Returns the module and, per node, the name of the program's node it computes (a part of).
    """
    integer = read(program, layers)
    editor = _Editor(integer.module)
    for op in integer.ops.values():
        _share(editor, op)
        _split_activation(editor, op)
    for node in list(integer.module.graph.nodes):
        if node.op == "call_function":
            _operator(editor, node)
    integer.module.graph.eliminate_dead_code()
    integer.module.graph.lint()
    integer.module.recompile()
    return integer.module, editor.origin


class _Editor:
    """Adds nodes in front of another and remembers whose work they do."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.origin = {n: n.name for n in module.graph.nodes if n.op == "call_function"}
        self.quantized = any(n.target is QUANTIZE for n in self.origin)

    def call(self, before: Node, target: Any, *args: Any) -> Node:
        """A call in front of `before`, which it does a part of."""
        with self.module.graph.inserting_before(before):
            node = self.module.graph.call_function(target, args)
        self.origin[node] = self.origin[before]
        return node

    def boundary(self, before: Node, x: Node, numbers: Sequence[Any] | None) -> Node:
        """`x` as integers and back, where its group is quantized: one integer operator ends, another begins."""
        if numbers is None:
            return x
        return self.call(before, DEQUANTIZE, self.call(before, QUANTIZE, x, *numbers), *numbers)

    def replace(self, old: Node, new: Node) -> None:
        """Let `new` stand for `old` everywhere."""
        new.meta.setdefault("val", old.meta["val"])
        old.replace_all_uses_with(new)
        self.module.graph.erase_node(old)


def _order(node: Node) -> list[int]:
    """The order of axes that a permute or transpose gives.

    As permute_copy, since in torch what is permuted lies as it did, and a reshape behind it begins with a copy, which parts the
    reshape from its integers: the delegate then computes it in float.
    """
    axes = list(range(value(node.args[0]).dim()))
    if node.target is aten.transpose.int:
        a, b = (int(i) % len(axes) for i in node.args[1:3])  # type: ignore[arg-type] # numbers
        axes[a], axes[b] = axes[b], axes[a]
        return axes
    return [int(i) for i in node.args[1]]  # type: ignore[union-attr, arg-type] # a list of numbers


def _operator(editor: _Editor, node: Node) -> None:
    kind = kind_of(node)
    if kind == "clamp":
        _clamp(editor, node)
    elif kind == "mean":
        _mean(editor, node)
    elif kind == "avg_pool2d" and _numbers(node) is not None and xnnpack_average(node) is None:
        _average_pool(editor, node)
    elif kind == "upsample_nearest":
        _upsample(editor, node)
    elif kind == "reshape" and node.target not in (aten.view.default, aten.reshape.default):
        editor.replace(node, editor.call(node, aten.reshape.default, node.args[0], list(value(node).shape)))
    elif kind == "permute" and _numbers(node) is not None:
        editor.replace(node, editor.call(node, aten.permute_copy.default, node.args[0], _order(node)))
    elif kind == "gather" and _numbers(node) is not None:
        _gather(editor, node)
    elif kind == "matmul" and node.target is aten.matmul.default:
        _matmul(editor, node)
    elif role_of(kind) == "layer":
        _weight_only(editor, node, kind or "")
        if kind == "conv1d" and editor.quantized and getattr(node.args[1], "target", None) is not DEQUANTIZE_CHANNEL:
            _row(editor, node)
    elif node.target is aten.softmax.int and value(node).dim() == 4 and node.args[1] in (3, -1):
        _rows_of_softmax(editor, node)
    elif node.target is aten.conv_transpose1d.default and value(node).dim() == 3:
        _row(editor, node)
    elif node.target is aten.conv3d.default and value(node).dim() == 5:
        _volume(editor, node)
    elif node.target in SPELLED and smooth(node):
        editor.replace(node, SPELLED[node.target](partial(editor.call, node), node))


def _rows_of_softmax(editor: _Editor, node: Node) -> None:
    """A softmax of an image's rows as one of a table's: the delegate's last axis is the channels behind what it keeps so."""
    table = editor.call(node, aten.reshape.default, node.args[0], [-1, value(node).shape[3]])
    table = editor.call(node, aten.softmax.int, table, -1, *node.args[2:])
    editor.replace(node, editor.call(node, aten.reshape.default, table, list(value(node).shape)))


def _row(editor: _Editor, node: Node) -> None:
    """A float convolution of one axis as one of two: beside integers the delegate makes of it what its runtime refuses."""

    def pair(at: int, flat: int) -> list[int]:
        given = node_arg(node, at, flat)
        return [flat, *(given if isinstance(given, (list, tuple)) else [given])]

    x, weight, groups = node.args[0], node.args[1], node_arg(node, 6, 1)
    assert isinstance(x, Node) and isinstance(weight, Node)
    target, rest = aten.conv_transpose2d.input, [pair(5, 0), groups, pair(7, 1)]
    if node.target is aten.conv1d.default:
        target, rest = aten.conv2d.default, [pair(5, 1), groups]
    batch, channels, length = value(x).shape
    image = editor.call(node, aten.reshape.default, x, [batch, channels, 1, length])
    if weight.op == "get_attr":
        with editor.module.graph.inserting_before(node):  # a constant, as the delegate takes no other
            kernel = set_constant(editor.module, f"{node.name}_row", constant(editor.module, weight).unsqueeze(2))
    else:
        kernel = editor.call(node, aten.unsqueeze.default, weight, 2)
    image = editor.call(node, target, image, kernel, node_arg(node, 2, None), pair(3, 1), pair(4, 0), *rest)
    editor.replace(node, editor.call(node, aten.reshape.default, image, list(value(node).shape)))


def _volume(editor: _Editor, node: Node) -> None:
    """A convolution of three axes, which no kernel here computes: one of two axes for each plane of its kernel, added up."""
    x, weight, bias = node.args[0], node.args[1], node_arg(node, 2, None)
    steps, pads, gaps = (_three(node_arg(node, at, default)) for at, default in ((3, 1), (4, 0), (5, 1)))
    (count, channels, _, height, width), (outputs, depth) = value(x).shape, value(node).shape[1:3]
    if pads[0]:
        numbers = x.args[1:] if isinstance(x, Node) and x.target is DEQUANTIZE else None
        padded = editor.call(node, aten.constant_pad_nd.default, x, [0, 0, 0, 0, pads[0], pads[0]], 0.0)
        x = editor.boundary(node, padded, numbers)
    total: Node | None = None
    for plane in range(value(weight).shape[2]):
        start = plane * gaps[0]
        part = editor.call(node, aten.slice.Tensor, x, 2, start, start + (depth - 1) * steps[0] + 1, steps[0])
        part = editor.call(node, aten.permute.default, part, [0, 2, 1, 3, 4])
        part = editor.call(node, aten.reshape.default, part, [count * depth, channels, height, width])
        flat = editor.call(node, aten.select.int, weight, 2, plane)
        geometry = (steps[1:], pads[1:], gaps[1:], node_arg(node, 6, 1))
        part = editor.call(node, aten.conv2d.default, part, flat, None if plane else bias, *geometry)
        total = part if total is None else editor.call(node, aten.add.Tensor, total, part)
    assert total is not None
    apart = editor.call(node, aten.reshape.default, total, [count, depth, outputs, *value(node).shape[3:]])
    editor.replace(node, editor.call(node, aten.permute.default, apart, [0, 2, 1, 3, 4]))


def _three(numbers: Any) -> list[int]:
    given = list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
    return given if len(given) == 3 else given * 3


def _numbers(node: Node) -> tuple[Any, ...] | None:
    """Arguments of the quantize node behind an integer operator (its activation aside); None in a float island."""
    if any(s.target is not DEQUANTIZE for s in data_inputs(node, kind_of(node) or "")) or len(node.users) != 1:
        return None
    (user,) = node.users
    if role_of(kind_of(user)) == "clip" and len(user.users) == 1:
        (user,) = user.users
    return tuple(user.args[1:]) if user.target is QUANTIZE else None


def _share(editor: _Editor, op: IntegerOp) -> None:
    """Kernels that move or compare integers want one scale and zero point: what comes with others is converted first."""
    if op.kind not in SHARED:
        return
    (end,) = (n for n in editor.module.graph.nodes if n.name == op.name)
    for source, qparams in dict(zip(data_inputs(op.node, op.kind), op.input_qparams, strict=True)).items():
        if _pair(qparams) != _pair(op.output_qparams):
            brought = editor.boundary(op.node, source, end.args[1:])
            brought.meta["val"] = source.meta["val"]
            op.node.replace_input_with(source, brought)


def _pair(qparams: QParams) -> tuple[float, int]:
    return qparams.step, qparams.zero


def _split_activation(editor: _Editor, op: IntegerOp) -> None:
    """An activation the kernel does not fuse becomes an int8 clamp of its own; clipping twice is clipping once."""
    if op.kind in FUSES_ANY or op.kind == "requantize":
        return
    (activation,) = op.node.users
    kind = kind_of(activation)
    if role_of(kind) != "clip" or (op.kind, kind) == ("add", "relu"):
        return
    numbers = _numbers(op.node)
    between = editor.call(activation, QUANTIZE, op.node, *(numbers or ()))
    activation.replace_input_with(op.node, editor.call(activation, DEQUANTIZE, between, *(numbers or ())))


def _clamp(editor: _Editor, node: Node) -> None:
    """ExecuTorch fuses relu and hardtanh; behind a quantized convolution a clamp breaks its lowering."""
    low, high = clip_bounds(node, "clamp")
    if low == 0 and high is None:
        editor.replace(node, editor.call(node, aten.relu.default, node.args[0]))
    elif node.target is not aten.hardtanh.default:
        limits = (-LARGEST if low is None else low, LARGEST if high is None else high)
        editor.replace(node, editor.call(node, aten.hardtanh.default, node.args[0], *limits))


def _mean(editor: _Editor, node: Node) -> None:
    """The delegate averages only with keepdim: average, then drop the axes."""
    before, after = value(node.args[0]).shape, value(node).shape
    pool = node.target is aten.adaptive_avg_pool2d.default
    axes = [-2, -1] if pool else node.args[1]
    if len(before) != 4 or node.kwargs or sorted(int(a) % 4 for a in axes) != [2, 3]:  # type: ignore[union-attr, arg-type] # ints
        return
    if not pool and len(after) == 4:
        return
    numbers = _numbers(node)
    mean = editor.call(node, aten.mean.dim, node.args[0], [2, 3], True)
    if len(after) != 4:
        mean = editor.call(node, aten.reshape.default, editor.boundary(node, mean, numbers), list(after))
    editor.replace(node, mean)


def _average_pool(editor: _Editor, node: Node) -> None:
    """A depthwise convolution of ones, weight scale 1 / window: one exact sum, one rounding."""
    kernel = [int(k) for k in node.args[1]]  # type: ignore[union-attr, arg-type] # a list of ints
    channels, window = value(node.args[0]).shape[1], kernel[0] * kernel[-1]
    with editor.module.graph.inserting_before(node):
        ones = torch.ones(channels, 1, kernel[0], kernel[-1], dtype=torch.int8)
        weight = set_constant(editor.module, f"{node.name}_ones", ones)
        scales = set_constant(editor.module, f"{node.name}_scale", torch.full((channels,), 1 / window))
        zeros = set_constant(editor.module, f"{node.name}_zero", torch.zeros(channels, dtype=torch.int64))
    real = editor.call(node, DEQUANTIZE_CHANNEL, weight, scales, zeros, 0, -127, 127, torch.int8)
    stride = node_arg(node, 2, None) or kernel
    geometry = (list(stride), node_arg(node, 3, [0, 0]), [1, 1], channels)
    editor.replace(node, editor.call(node, aten.conv2d.default, node.args[0], real, None, *geometry))


def _upsample(editor: _Editor, node: Node) -> None:
    """Whole-factor nearest upsampling as concatenations of rows in channels-last order: copies of whole pixels."""
    before, after = value(node.args[0]).shape, value(node).shape
    if len(before) != 4 or any(a % b for a, b in zip(after[2:], before[2:], strict=True)):
        return
    batch, channels, height, width = before
    numbers = _numbers(node)

    def step(target: Any, x: Node | list[Node], *args: Any) -> Node:
        return editor.boundary(node, editor.call(node, target, x, *args), numbers)

    def repeat(x: Node, shape: list[int], times: int) -> Node:
        # one view for each copy: the delegate takes no tensor twice in one concatenation
        copies = [step(aten.reshape.default, x, shape) for _ in range(times)]
        return step(aten.cat.default, copies, 1) if times > 1 else copies[0]

    source = node.args[0]
    assert isinstance(source, Node)
    pixels = step(aten.permute.default, source, [0, 2, 3, 1])
    wide = repeat(pixels, [batch * height * width, 1, channels], after[3] // width)
    tall = repeat(wide, [batch * height, 1, after[3] * channels], after[2] // height)
    image = step(aten.reshape.default, tall, [batch, after[2], after[3], channels])
    editor.replace(node, editor.call(node, aten.permute.default, image, [0, 3, 1, 2]))


def _gather(editor: _Editor, node: Node) -> None:
    """XNNPACK picks no rows; ExecuTorch's own kernel does so on the integers, between two calls of the delegate."""
    source, (quantize,) = node.args[0], node.users
    assert isinstance(source, Node)
    quantize.replace_all_uses_with(editor.call(node, aten.index_select.default, source.args[0], 0, node.args[2]))


def _matmul(editor: _Editor, node: Node) -> None:
    """A batched product as bmm: its own decomposition expands both operands in kernels outside the delegate."""
    left, right = node.args[:2]
    a, b, out = value(left).shape, value(right).shape, value(node).shape
    if len(a) < 4 or a[:-2] != b[:-2]:
        return
    flat = [editor.call(node, aten.reshape.default, x, [-1, *s[-2:]]) for x, s in ((left, a), (right, b))]
    product = editor.call(node, aten.bmm.default, *flat)
    editor.replace(node, editor.call(node, aten.reshape.default, product, list(out)))


def _weight_only(editor: _Editor, node: Node, kind: str) -> None:
    """int8 weights under float activations: linear keeps them, its bias apart; convolutions have no such kernel."""
    at = weights_of(kind)
    weight, bias = node.args[at.weight], node_arg(node, at.bias, None)
    if not isinstance(weight, Node) or weight.target is not DEQUANTIZE_CHANNEL or _numbers_weighted(node, weight, bias):
        return
    if kind == "linear":
        if bias is not None:
            product = editor.call(node, aten.linear.default, node.args[0], weight)
            editor.replace(node, editor.call(node, aten.add.Tensor, product, bias))
        return
    with editor.module.graph.inserting_before(node):
        real = set_constant(editor.module, f"{node.name}_float_weight", coded_weight(editor.module, weight).decode())
    node.replace_input_with(weight, real)


def _numbers_weighted(node: Node, weight: Node, bias: Any) -> bool:
    """Whether a weighted operator stands between a dequantize and a quantize."""
    source = node.args[0]
    if not isinstance(source, Node) or source.target is not DEQUANTIZE or len(node.users) != 1:
        return False
    (user,) = node.users
    if role_of(kind_of(user)) == "clip" and len(user.users) == 1:
        (user,) = user.users
    return user.target is QUANTIZE
