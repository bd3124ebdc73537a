"""Integer kernels without weights as TIR: addition, products, pooling, data movement, and the float boundary.

Values of four axes lie channels-last. Rules and constants are those of edgeq.graph.arithmetic.tvm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import torch

from edgeq.backends.tvm.schedule import Machine
from edgeq.backends.tvm.tir import flat, prim_func, runs, spread, store_all, tasks
from edgeq.graph.arithmetic.tvm import fixed_point, mean_axes, pool_attrs, ratio
from edgeq.graph.integer import IntegerOp
from edgeq.graph.ops import node_arg, value
from edgeq.spec import EdgeqError, QParams

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
CHUNK = 16384  # elements per task of a flat loop
ROWS = 1024  # rows per task of a gather
WORTH = 65536  # elements moved by vectors that are worth several threads; a quarter of them where they go one by one


def lying(shape: Shape) -> Shape:
    """The shape in memory of an integer value of torch shape `shape`."""
    return (shape[0], shape[2], shape[3], shape[1]) if len(shape) == 4 else shape


def _logical(index: Sequence[Any]) -> list[Any]:
    """Torch's index of a memory index."""
    return [index[0], index[3], index[1], index[2]] if len(index) == 4 else list(index)


def offset(index: Sequence[Any], shape: Shape) -> Any:
    """Place in memory of torch's index into a value of torch shape `shape`."""
    place: Any = 0
    for i, n in zip(lying(tuple(index)), lying(shape), strict=True):
        place = place * n + i
    return place


def _split(place: Any, shape: Shape) -> list[Any]:
    """Row-major index of a flat place."""
    index = []
    for n in reversed(shape):
        index.append(place % n)
        place = place // n
    return index[::-1]


def _flat_map(T: Any, size: int, out: Any, lanes: int, body: Callable[[Any, int], Any]) -> None:
    """out[i] = body(i, lanes) over flat memory, at most `lanes` elements at a time."""
    if size < WORTH:
        for start, width in runs(T, size, lanes):
            store_all(T, out, start, body(start, width), width)
        return
    with T.parallel(0, -(-size // CHUNK)) as task:
        first = T.Bind(T.min(task * CHUNK, size - CHUNK))  # the last task overlaps its neighbour
        for start, width in runs(T, CHUNK, lanes):
            place = T.Bind(first + start)
            store_all(T, out, place, body(place, width), width)


def each(T: Any, shape: Shape, body: Callable[[list[Any]], None]) -> None:
    """body(torch index) for every element of a value of torch shape `shape`, in the order of memory."""
    memory = lying(shape)
    with tasks(T, math.prod(memory[:-1]), math.prod(shape) >= WORTH // 4) as outer:
        index = [T.Bind(i) for i in _split(outer, memory[:-1])]
        with T.serial(0, memory[-1]) as last:
            body(_logical([*index, last]))


def _at(T: Any, buffer: Any, start: Any, lanes: int) -> Any:
    return buffer[T.ramp(start, 1, lanes) if lanes > 1 else start]


def shifted(T: Any, stored: Any, qparams: QParams, lanes: int) -> Any:
    """int32 value − zero point."""
    wide = T.cast(stored, f"int32x{lanes}" if lanes > 1 else "int32")
    return wide - spread(T, T.int32(qparams.zero), lanes)


def _scaled(T: Any, machine: Machine, op: IntegerOp, stored: Any, lanes: int, index: int = 0) -> Any:
    """One int8 input brought to the output's numbers; itself where they are the same."""
    if _same(op, index):
        return stored
    total = shifted(T, stored, op.input_qparams[index], lanes)
    return machine.requantize(T, total, spread(T, T.float32(float(ratio(op, index))), lanes), op, lanes)


def _lanes(machine: Machine, op: IntegerOp) -> int:
    """How many elements go through `_scaled` at a time."""
    return machine.flat if all(_same(op, i) for i in range(len(op.input_qparams))) else machine.floats(machine.flat)


def _same(op: IntegerOp, index: int = 0) -> bool:
    ours, theirs = op.output_qparams, op.input_qparams[index]
    same_numbers = (ours.scale, ours.zero_point) == (theirs.scale, theirs.zero_point)
    return same_numbers and (op.low, op.high) == (-128, 127)


def is_view(ops: Sequence[IntegerOp], x: Shape) -> bool:
    """Whether `ops`, one behind the other, change no byte and no order in memory of a value of torch shape x.

    A reshape and a permute of four axes may undo each other: rows [H·W, C] are an image [1, C, H, W] as it lies.
    """
    if any(op.kind not in ("reshape", "permute") or not _same(op) for op in ops):
        return False
    places = torch.arange(math.prod(x))
    moved = places.reshape(lying(x))
    moved = moved.permute(0, 3, 1, 2) if len(x) == 4 else moved
    for op in ops:
        moved = op.node.target(moved, *op.node.args[1:], **op.node.kwargs)  # type: ignore[operator] # an aten operator
    return torch.equal((moved.permute(0, 2, 3, 1) if moved.dim() == 4 else moved).reshape(-1), places)


def kernel(op: IntegerOp, xs: Sequence[Shape], out: Shape, machine: Machine) -> tuple[Any, tuple[Array, ...]]:
    """The PrimFunc (inputs..., constants...) → out of an operator without weights, and its constants.

    xs, out: torch shapes.

    Raises:
        EdgeqError: there is no integer kernel of this kind.
    """
    emit = KERNELS.get(op.kind)
    if emit is None:
        raise EdgeqError(f"TVM has no integer kernel for {op.kind} ({op.layer}): leave it in float")
    tables = _tables(op)
    params = [(f"x{i}", lying(x), "int8") for i, x in enumerate(xs)]
    params += [(f"table{i}", t.shape, str(t.dtype)) for i, t in enumerate(tables)]
    params += [("out", lying(out), "int8")]

    def body(T: Any, buffers: list[Any]) -> None:
        views = [flat(T, b) for b in buffers]
        emit(T, machine, op, xs, out, views[: len(xs)], views[len(xs) : -1], views[-1])

    return prim_func(op.kind, params, body), tables


def _tables(op: IntegerOp) -> tuple[Array, ...]:
    if op.entries is not None:
        return (op.entries.to(torch.int8).numpy(),)
    if op.kind == "avg_pool2d":
        return (ratio(op).numpy(),)
    if op.kind == "upsample_nearest":
        return _nearest(op)
    return ()


def _nearest(op: IntegerOp) -> tuple[Array, ...]:
    """Which row and which column each output row and column comes from, read off aten's own operator."""
    height, width = value(op.node.all_input_nodes[0]).shape[-2:]
    grid = torch.arange(height * width, dtype=torch.float64).reshape(1, 1, height, width)
    picked = op.node.target(grid, *op.node.args[1:], **op.node.kwargs)[0, 0].long()  # type: ignore[operator] # an aten operator
    return (picked[:, 0] // width).int().numpy(), (picked[0] % width).int().numpy()


def _add(
    T: Any, machine: Machine, op: IntegerOp, xs: Sequence[Shape], out: Shape, ins: Any, tables: Any, to: Any
) -> None:
    first, second, shift = fixed_point(op)

    def body(a: Any, b: Any, lanes: int) -> Any:
        def every(v: int) -> Any:
            return spread(T, T.int32(v), lanes)

        total = shifted(T, a, op.input_qparams[0], lanes) * every(first)
        total = total + shifted(T, b, op.input_qparams[1], lanes) * every(second)
        scaled = T.shift_right(total + every(1 << (shift - 1)), every(shift))
        scaled = scaled + every(op.output_qparams.zero)
        clipped = T.min(T.max(scaled, every(op.low)), every(op.high))
        return T.cast(clipped, f"int8x{lanes}" if lanes > 1 else "int8")

    _pairwise(T, machine.flat, xs, out, ins, to, body)


def _mul(
    T: Any, machine: Machine, op: IntegerOp, xs: Sequence[Shape], out: Shape, ins: Any, tables: Any, to: Any
) -> None:
    m = float(ratio(op))

    def body(a: Any, b: Any, lanes: int) -> Any:
        total = shifted(T, a, op.input_qparams[0], lanes) * shifted(T, b, op.input_qparams[1], lanes)
        return machine.requantize(T, total, spread(T, T.float32(m), lanes), op, lanes)

    _pairwise(T, machine.floats(machine.flat), xs, out, ins, to, body)


def _pairwise(
    T: Any, lanes: int, xs: Sequence[Shape], out: Shape, ins: Any, to: Any, body: Callable[[Any, Any, int], Any]
) -> None:
    """body over two inputs, broadcast against each other where their shapes differ; `lanes` elements at a time."""
    if xs[0] == xs[1]:
        _flat_map(T, math.prod(out), to, lanes, lambda i, n: body(_at(T, ins[0], i, n), _at(T, ins[1], i, n), n))
        return

    def element(index: list[Any]) -> None:
        def picked(buffer: Any, shape: Shape) -> Any:
            tail = index[len(index) - len(shape) :]
            return buffer[offset([i if n > 1 else 0 for i, n in zip(tail, shape, strict=True)], shape)]

        T.buffer_store(to, body(picked(ins[0], xs[0]), picked(ins[1], xs[1]), 1), [offset(index, out)])

    each(T, out, element)


def _pointwise(
    T: Any, machine: Machine, op: IntegerOp, xs: Sequence[Shape], out: Shape, ins: Any, tables: Any, to: Any
) -> None:
    lanes = _lanes(machine, op)
    _flat_map(T, math.prod(out), to, lanes, lambda i, n: _scaled(T, machine, op, _at(T, ins[0], i, n), n))


def _look_up(
    T: Any, machine: Machine, op: IntegerOp, xs: Sequence[Shape], out: Shape, ins: Any, tables: Any, to: Any
) -> None:
    lowest = op.input_qparams[0].qmin
    _flat_map(T, math.prod(out), to, 1, lambda i, n: tables[0][T.cast(ins[0][i], "int32") - lowest])


def _cat(
    T: Any, machine: Machine, op: IntegerOp, xs: Sequence[Shape], out: Shape, ins: Any, tables: Any, to: Any
) -> None:
    axis = int(node_arg(op.node, 1, op.node.kwargs.get("dim", 0))) % len(out)
    start = 0
    for k, (buffer, shape) in enumerate(zip(ins, xs, strict=True)):

        def element(index: list[Any], k: int = k, source: Any = buffer, x: Shape = shape, start: int = start) -> None:
            place = [i + start if a == axis else i for a, i in enumerate(index)]
            T.buffer_store(to, _scaled(T, machine, op, source[offset(index, x)], 1, k), [offset(place, out)])

        each(T, shape, element)
        start += shape[axis]


def _move(source: Callable[[Any, IntegerOp, Shape, Shape, list[Any], Any], tuple[list[Any], Any]]) -> Any:
    """A kernel that takes each output element from one input element; `source` gives its torch index and condition."""

    def emit(
        T: Any, machine: Machine, op: IntegerOp, xs: Sequence[Shape], out: Shape, ins: Any, tables: Any, to: Any
    ) -> None:
        def element(index: list[Any]) -> None:
            origin, inside = source(T, op, xs[0], out, index, tables)
            taken = ins[0][offset(origin, xs[0])]
            if inside is not None:
                taken = T.if_then_else(inside, taken, T.int8(op.input_qparams[0].zero))
            T.buffer_store(to, _scaled(T, machine, op, taken, 1), [offset(index, out)])

        each(T, out, element)

    return emit


def _reshape(T: Any, op: IntegerOp, x: Shape, out: Shape, index: list[Any], tables: Any) -> tuple[list[Any], Any]:
    place: Any = 0
    for i, n in zip(index, out, strict=True):
        place = place * n + i
    return _split(place, x), None


def _permute(T: Any, op: IntegerOp, x: Shape, out: Shape, index: list[Any], tables: Any) -> tuple[list[Any], Any]:
    rank = len(x)
    if op.node.target is torch.ops.aten.transpose.int:
        axes = list(range(rank))
        a, b = (int(node_arg(op.node, i, None)) % rank for i in (1, 2))
        axes[a], axes[b] = b, a
    else:
        axes = [int(a) % rank for a in op.node.args[1]]  # type: ignore[union-attr,arg-type] # a list of ints
    origin = [index[0]] * rank
    for i, axis in enumerate(axes):
        origin[axis] = index[i]
    return origin, None


def _slice(T: Any, op: IntegerOp, x: Shape, out: Shape, index: list[Any], tables: Any) -> tuple[list[Any], Any]:
    axis = int(node_arg(op.node, 1, 0)) % len(x)
    window = slice(node_arg(op.node, 2, None), node_arg(op.node, 3, None), node_arg(op.node, 4, 1))
    start, _, step = window.indices(x[axis])
    return [start + i * step if a == axis else i for a, i in enumerate(index)], None


def _pad(T: Any, op: IntegerOp, x: Shape, out: Shape, index: list[Any], tables: Any) -> tuple[list[Any], Any]:
    amounts = [int(n) for n in op.node.args[1]]  # type: ignore[union-attr,arg-type] # a list of ints
    inside: Any = None
    origin = list(index)
    for k in range(len(amounts) // 2):  # the last axis comes first
        axis, before = len(x) - 1 - k, amounts[2 * k]
        origin[axis] = index[axis] - before
        if before or amounts[2 * k + 1]:
            here = T.And(origin[axis] >= 0, origin[axis] < x[axis])
            inside = here if inside is None else T.And(inside, here)
    return origin, inside


def _upsample(T: Any, op: IntegerOp, x: Shape, out: Shape, index: list[Any], tables: Any) -> tuple[list[Any], Any]:
    n, c, h, w = index
    return [n, c, tables[0][h], tables[1][w]], None


def _wide(T: Any, number: int, dtype: str, lanes: int) -> Any:
    return spread(T, T.cast(T.int32(number), dtype), lanes)


def _max_pool(
    T: Any, machine: Machine, op: IntegerOp, xs: Sequence[Shape], out: Shape, ins: Any, tables: Any, to: Any
) -> None:
    kernel, stride, padding, _ = pool_attrs(op.node)
    raw = node_arg(op.node, 4, 1)
    dilation = (int(raw[0]), int(raw[-1])) if isinstance(raw, (list, tuple)) else (int(raw), int(raw))

    def fold(total: Any, stored: Any, lanes: int) -> Any:
        return T.max(total, stored)

    def finish(total: Any, spot: Any, lanes: int) -> Any:
        return _scaled(T, machine, op, total, lanes)

    window = (kernel, stride, padding, dilation)
    _pool(T, _lanes(machine, op), xs[0], out, ins[0], to, window, "int8", -128, fold, finish)


def _avg_pool(
    T: Any, machine: Machine, op: IntegerOp, xs: Sequence[Shape], out: Shape, ins: Any, tables: Any, to: Any
) -> None:
    kernel, stride, padding, _ = pool_attrs(op.node)

    def fold(total: Any, stored: Any, lanes: int) -> Any:
        return total + shifted(T, stored, op.input_qparams[0], lanes)

    def finish(total: Any, spot: Any, lanes: int) -> Any:
        return machine.requantize(T, total, spread(T, tables[0][spot], lanes), op, lanes)

    window = (kernel, stride, padding, (1, 1))
    _pool(T, machine.floats(machine.flat), xs[0], out, ins[0], to, window, "int32", 0, fold, finish)


def _pool(
    T: Any,
    lanes: int,
    x: Shape,
    out: Shape,
    source: Any,
    to: Any,
    window: tuple[tuple[int, int], ...],
    dtype: str,
    start: int,
    fold: Callable[[Any, Any, int], Any],
    finish: Callable[[Any, Any, int], Any],
) -> None:
    """Fold every window's elements that exist into `start`, vectors of at most `lanes` along the channels."""
    (_, channels, height, width), (batch, _, out_rows, out_columns) = x, out
    kernel, stride, padding, dilation = window

    def pixel(line: Any, column: Any) -> None:
        def body(channel: Any, lanes: int) -> None:
            total = T.alloc_buffer((lanes,), dtype, scope="global")
            every = T.ramp(0, 1, lanes) if lanes > 1 else 0
            T.buffer_store(total, _wide(T, start, dtype, lanes), [every])
            with T.serial(0, kernel[0]) as y, T.serial(0, kernel[1]) as z:
                row = line % out_rows * stride[0] - padding[0] + y * dilation[0]
                at = column * stride[1] - padding[1] + z * dilation[1]
                exists = T.And(T.And(row >= 0, row < height), T.And(at >= 0, at < width))
                with T.If(exists), T.Then():
                    place = ((line // out_rows * height + row) * width + at) * channels + channel
                    T.buffer_store(total, fold(total[every], _at(T, source, place, lanes), lanes), [every])
            value = finish(total[every], line % out_rows * out_columns + column, lanes)
            store_all(T, to, (line * out_columns + column) * channels + channel, value, lanes)

        for channel, some in runs(T, channels, lanes):
            body(channel, some)

    worth = batch * channels * out_rows * out_columns * kernel[0] * kernel[1] >= WORTH * lanes // 32
    with tasks(T, batch * out_rows, worth) as line, T.serial(0, out_columns) as column:
        pixel(line, column)


def _mean(
    T: Any, machine: Machine, op: IntegerOp, xs: Sequence[Shape], out: Shape, ins: Any, tables: Any, to: Any
) -> None:
    x = xs[0]
    axes, keep = mean_axes(op.node)
    m = T.float32(float(ratio(op)))
    if len(x) == 4 and axes == (2, 3):
        batch, channels, height, width = x
        with T.serial(0, batch) as n:

            def body(channel: Any, lanes: int) -> None:
                total = T.alloc_buffer((lanes,), "int32", scope="global")
                every = T.ramp(0, 1, lanes) if lanes > 1 else 0
                T.buffer_store(total, _wide(T, 0, "int32", lanes), [every])
                with T.serial(0, height * width) as p:
                    stored = _at(T, ins[0], (n * height * width + p) * channels + channel, lanes)
                    T.buffer_store(total, total[every] + shifted(T, stored, op.input_qparams[0], lanes), [every])
                store_all(
                    T,
                    to,
                    n * channels + channel,
                    machine.requantize(T, total[every], spread(T, m, lanes), op, lanes),
                    lanes,
                )

            for channel, some in runs(T, channels, machine.floats(machine.flat)):
                body(channel, some)
        return

    kept = [a for a in range(len(x)) if a not in axes]

    def element(index: list[Any]) -> None:
        total = T.alloc_buffer((1,), "int32", scope="global")
        T.buffer_store(total, T.int32(0), [0])
        with T.serial(0, math.prod(x[a] for a in axes)) as r:
            inner = dict(zip(axes, _split(r, tuple(x[a] for a in axes)), strict=True))
            outer = dict(zip(kept, [index[a] for a in kept] if keep else index, strict=True))
            stored = ins[0][offset([inner[a] if a in inner else outer[a] for a in range(len(x))], x)]
            T.buffer_store(total, total[0] + shifted(T, stored, op.input_qparams[0], 1), [0])
        T.buffer_store(to, machine.requantize(T, total[0], m, op, 1), [offset(index, out)])

    if not out:  # everything folded into one number
        with T.serial(0, 1):
            element([])
        return
    each(T, out, element)


KERNELS: dict[str, Callable[..., None]] = {
    "add": _add,
    "sub": _add,
    "mul": _mul,
    "cat": _cat,
    "max_pool2d": _max_pool,
    "avg_pool2d": _avg_pool,
    "mean": _mean,
    "relu": _pointwise,
    "relu6": _pointwise,
    "clamp": _pointwise,
    "requantize": _pointwise,
    "sigmoid": _look_up,
    "tanh": _look_up,
    "curve": _look_up,
    "reshape": _move(_reshape),
    "permute": _move(_permute),
    "slice": _move(_slice),
    "pad": _move(_pad),
    "upsample_nearest": _move(_upsample),
}


def gather(op: IntegerOp, x: Shape, places: Shape, dtype: str, machine: Machine) -> Any:
    """The PrimFunc (x, table) → rows of x by a table of shape `places`; x is a torch shape."""
    row, count = math.prod(x[1:]), math.prod(places)
    lanes = math.gcd(row, 64)

    def body(T: Any, buffers: list[Any]) -> None:
        source, table, to = (flat(T, b) for b in buffers)
        groups = tasks(T, -(-count // ROWS), count * row >= WORTH)
        with groups as task, T.serial(0, T.min(ROWS, count - task * ROWS)) as i:
            place = T.Bind(task * ROWS + i)
            start = T.Bind(T.cast(table[place], "int32") * row)
            with T.serial(0, row // lanes) as part:
                taken = _at(T, source, start + part * lanes, lanes)
                store_all(T, to, place * row + part * lanes, _scaled(T, machine, op, taken, lanes), lanes)

    out = (count, *x[1:])
    return prim_func("gather", [("x", lying(x), "int8"), ("table", places, dtype), ("out", lying(out), "int8")], body)
