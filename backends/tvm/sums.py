"""Convolution and matrix product as TIR: int8 × int8 → int32 sums, then one multiply, round and clip per output.

Activations of four axes lie channels-last, [N, H, W, C]. An output is cut into tasks. A task first stages the input that
it reads (padded, widened as the machine's instruction wants it), then keeps a tile of pixels × output channels in
registers through the whole sum. Every kernel is one PrimFunc (x, weight, bias, multiplier) → out, see `pack` for the weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.backends.tvm.geometry import Geometry
from edgeq.backends.tvm.schedule import Machine
from edgeq.backends.tvm.tir import flat, prim_func, runs, store_all, tasks, widened
from edgeq.graph.integer import IntegerOp

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Packed:
    """Constants of one kernel: weight int8, bias int32 and multiplier float32, padded to whole vectors."""

    weight: Array
    bias: Array
    multiplier: Array


def multiplier(op: IntegerOp) -> Array:
    """float32(s_in)·float32(s_w[c]) / float32(s_out), each step rounded to float32: XNNPACK's order."""
    assert op.weight_scale is not None
    scale_in, scale_out = np.float32(op.input_qparams[0].step), np.float32(op.output_qparams.step)
    ratio: Array = scale_in * op.weight_scale.numpy() / scale_out
    return ratio.astype(np.float32)


def is_depthwise(g: Geometry) -> bool:
    """Several groups of one input and one output channel, channels lying together: computed across channels."""
    return g.last and g.groups == g.channels == g.out_channels > 1 and g.phases == (1, 1)


def pack(op: IntegerOp, g: Geometry, w: Array, machine: Machine) -> Packed:
    """Weights as [phase, group, C_out/lanes, kh, kw, C_in/group, lanes, group], or [kh, kw, C] for depthwise.

    Where inputs are staged with an offset instead of x − zero point, Σ (offset + zero point)·w moves into the bias.
    """
    bias = np.zeros(g.out_channels, np.int64) if op.bias is None else op.bias.numpy().astype(np.int64)
    ratio, zero_point = multiplier(op), op.input_qparams[0].zero
    if is_depthwise(g):
        width = machine.deep
        apart = _whole(w[0, :, 0].transpose(1, 2, 0), width)
        biases = _whole(bias, width).reshape(-1, width)[:, list(machine.order)].reshape(-1)
        return Packed(np.ascontiguousarray(apart), biases.astype(np.int32), _whole(ratio, width))
    phases, _, each, kh, kw = w.shape
    outs = g.out_channels // g.groups
    vectors, quads = -(-outs // machine.lanes), -(-each // machine.group)
    full = np.zeros((phases, g.groups, vectors * machine.lanes, quads * machine.group, kh, kw), np.int8)
    full[:, :, :outs, :each] = w.reshape(phases, g.groups, outs, each, kh, kw)
    full = full.reshape(phases, g.groups, vectors, machine.lanes, quads, machine.group, kh, kw)
    weight = np.ascontiguousarray(full.transpose(0, 1, 2, 6, 7, 4, 3, 5))
    by_phase = np.broadcast_to(bias, (phases, g.out_channels)).copy()
    if machine.offset is not None:
        by_phase -= (machine.offset + zero_point) * w.astype(np.int64).sum((2, 3, 4))

    def lanes(per_channel: Array, dtype: type) -> Array:
        grouped = per_channel.reshape(*per_channel.shape[:-1], g.groups, outs)
        return _whole(grouped, machine.lanes).astype(dtype).reshape(-1)

    return Packed(weight, lanes(by_phase, np.int32), lanes(ratio, np.float32))


def _whole(values: Array, width: int) -> Array:
    """`values` with zeros behind its last axis, up to a multiple of `width`."""
    missing = -values.shape[-1] % width
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])


def kernel(
    op: IntegerOp, g: Geometry, packed: Packed, machine: Machine, x: tuple[int, ...], out: tuple[int, ...]
) -> Any:
    """The PrimFunc of `op`; x and out are the shapes as they lie in memory."""
    params = [("x", x, "int8"), ("weight", packed.weight.shape, "int8"), ("bias", packed.bias.shape, "int32")]
    params += [("multiplier", packed.multiplier.shape, "float32"), ("out", out, "int8")]
    body = _depthwise if is_depthwise(g) else _dense
    return prim_func(op.kind, params, lambda T, buffers: body(T, op, g, machine, *map(lambda b: flat(T, b), buffers)))


# ---------------------------------------------------------------- tasks


@dataclass(frozen=True, slots=True)
class Cut:
    """How an output is cut into tasks, which run in any order and on any thread.

    rows: output rows of a phase in a task. columns: output columns in a task. blocks: of output channels in a task.
    The counts say how many tasks lie along each of these. parallel: whether they are worth a thread's waking up.
    """

    rows: int
    columns: int
    blocks: int
    row_tasks: int
    column_tasks: int
    block_tasks: int
    parallel: bool


STAGED_BYTES = 65536  # of input that a task stages: half of a small core's second-level cache


TASKS = 4  # at least so many where the work is worth it


WORTH = 65536  # multiply instructions, ten microseconds or so; a parallel loop costs one, and five where cores are busy


def cut(g: Geometry, instructions: int, pixel_bytes: int, pixels: int, blocks: int) -> Cut:
    """Cut an output so that a task's staged input stays in the cache, and several threads have work.

    pixel_bytes: a staged pixel's. pixels: of a register tile. blocks: of output channels that there are.
    """
    rows, columns = g.per_phase
    worth = instructions >= WORTH
    pointwise = g.kernel == (1, 1) and g.stride == g.phases == (1, 1) and g.pad == (0, 0)
    if g.batch * rows == 1 and pointwise:  # nothing around a pixel is read, so that a row can be cut anywhere
        wanted = max(-(-columns * pixel_bytes // STAGED_BYTES), TASKS if worth else 1)
        tiles = -(-columns // pixels)
        part = min(columns, -(-tiles // min(wanted, tiles)) * pixels)
        each, row_tasks, column_tasks = 1, 1, -(-columns // part)
    else:
        row_bytes = g.staged[1] * pixel_bytes * g.stride[0]
        wanted = max(-(-rows * row_bytes // STAGED_BYTES), -(-TASKS // g.batch) if worth else 1)
        each = -(-rows // min(wanted, rows))
        part, row_tasks, column_tasks = columns, -(-rows // each), 1
    missing = -(-TASKS // (g.batch * row_tasks * column_tasks)) if worth else 1
    together = -(-blocks // min(missing, blocks))
    block_tasks = -(-blocks // together)
    many = g.batch * row_tasks * column_tasks * block_tasks > 1
    return Cut(each, part, together, row_tasks, column_tasks, block_tasks, worth and many)


@dataclass(frozen=True, slots=True)
class Task:
    """One task's place: image, first output row of a phase and how many, first output column, blocks from and how many."""

    image: Any
    row: Any
    rows: Any
    column: Any
    block: Any
    blocks: Any


def _tasks(T: Any, g: Geometry, c: Cut, blocks: int, body: Callable[[Task], None]) -> None:
    """body(task) for every task."""
    rows, columns = g.per_phase
    with tasks(T, g.batch * c.row_tasks * c.column_tasks * c.block_tasks, c.parallel) as number:
        spot, strip = number // c.block_tasks, number % c.block_tasks
        line, place = spot // c.column_tasks, spot % c.column_tasks
        row, block = T.Bind(line % c.row_tasks * c.rows), T.Bind(strip * c.blocks)
        column = T.Bind(T.min(place * c.columns, columns - c.columns))  # the last strip overlaps its neighbour
        height = c.rows if rows % c.rows == 0 else T.Bind(T.min(c.rows, rows - row))
        deep = c.blocks if blocks % c.blocks == 0 else T.Bind(T.min(c.blocks, blocks - block))
        body(Task(T.Bind(line // c.row_tasks), row, height, column, block, deep))


def _stage(
    T: Any, m: Machine, g: Geometry, c: Cut, task: Task, x: Any, dtype: str, channels: int, fill: int, read: Any
) -> tuple[Any, int]:
    """Copy what a task reads into [rows, columns, groups, channels] with `fill` around it; returns that and its columns.

    `read` converts a vector. Row 0 is the first that the task's first output row reads.
    """
    reach = g.staged[0] - (g.per_phase[0] - 1) * g.stride[0]  # rows that one output row reads
    columns = g.staged[1] - (g.per_phase[1] - c.columns) * g.stride[1]
    each = g.channels // g.groups
    pixel = g.groups * channels
    staged = T.alloc_buffer((((c.rows - 1) * g.stride[0] + reach) * columns * pixel,), dtype, scope="global")
    inside = max(0, min(g.size[1], columns - g.pad[1]))  # columns that some output reads

    def fill_run(start: Any, count: int) -> None:
        for base, lanes in runs(T, count, m.flat):
            store_all(T, staged, start + base, T.cast(T.int32(fill), dtype), lanes)

    def copy_run(start: Any, source: Any, count: int) -> None:
        for base, lanes in runs(T, count, m.flat):
            store_all(T, staged, start + base, read(x, source + base, lanes), lanes)

    with T.serial(0, (task.rows - 1) * g.stride[0] + reach) as r:
        row = T.Bind(task.row * g.stride[0] + r - g.pad[0])
        line = T.Bind(r * (columns * pixel))
        with T.If(T.And(row >= 0, row < g.size[0])):
            with T.Then():
                fill_run(line, g.pad[1] * pixel)
                target = T.Bind(line + g.pad[1] * pixel)
                at = T.Bind((task.image * g.size[0] + row) * g.size[1] + task.column)  # input pixel, channels last
                if g.last and channels == each:
                    copy_run(target, at * g.channels, inside * pixel)
                elif g.last:
                    with T.serial(0, inside * g.groups) as w:
                        place = target + w * channels
                        copy_run(place, at * g.channels + w * each, each)
                        fill_run(place + each, channels - each)
                else:
                    with T.serial(0, inside) as w, T.serial(0, g.channels) as k:
                        source = (task.image * g.channels + k) * g.size[1] + task.column + w  # one row only
                        T.buffer_store(
                            staged, read(x, source, 1), [target + w * pixel + (k // each) * channels + k % each]
                        )
                fill_run(line + (g.pad[1] + inside) * pixel, (columns - g.pad[1] - inside) * pixel)
            with T.Else():
                fill_run(line, columns * pixel)
    return staged, columns


# ---------------------------------------------------------------- the two kinds of sums


def _dense(
    T: Any, op: IntegerOp, g: Geometry, m: Machine, x: Any, weight: Any, bias: Any, ratio: Any, out: Any
) -> None:
    """Channels summed through: a register tile is some pixels of a row × vectors along the output channels."""
    zero_point = op.input_qparams[0].zero
    each, outs = g.channels // g.groups, g.out_channels // g.groups
    quads, vectors = -(-each // m.group), -(-outs // m.lanes)
    (kh, kw), (ph, pw) = g.kernel, g.phases
    pixel = g.groups * quads * m.group
    chunk = m.chunk(quads)
    pixels, wide = m.tile(g.per_phase[1], vectors, chunk)
    each_group = vectors // wide  # blocks
    blocks = g.groups * each_group
    step = m.lanes * m.group
    instructions = g.batch * g.out[0] * g.out[1] * g.groups * vectors * kh * kw * quads
    c = cut(g, instructions, pixel * m.staged_bytes, pixels, blocks)
    pixels = min(pixels, c.columns)

    def read(buffer: Any, start: Any, lanes: int) -> Any:
        return m.read(T, buffer[T.ramp(start, 1, lanes) if lanes > 1 else start], zero_point, lanes)

    def task(t: Task) -> None:
        staged, columns = _stage(T, m, g, c, t, x, m.staged, quads * m.group, m.fill(zero_point), read)
        staged = m.view(T, staged)

        def tile(line: Any, r: Any, q: Any, block: Any, number: Any) -> None:
            """One register tile: `pixels` outputs of a row of a phase, `wide` vectors of output channels."""
            group, inner = T.Bind(block // each_group), T.Bind(block % each_group * (wide * m.lanes))
            first = T.Bind(T.min(number * pixels, c.columns - pixels))
            channel = T.Bind(group * (vectors * m.lanes) + inner)
            phase = (r * pw + q) * (g.groups * vectors * m.lanes)
            top = line * g.stride[0] + (r + g.shift[0]) // ph
            left = first * g.stride[1] + (q + g.shift[1]) // pw
            origin = T.Bind((top * columns + left) * (g.groups * quads) + group * quads)  # in groups, as all reads
            packed = T.Bind((((r * pw + q) * g.groups) * vectors + block * wide) * (kh * kw * quads * step))
            total = T.alloc_buffer((pixels * wide * m.lanes,), "int32", scope="global")
            places = [[T.ramp((p * wide + v) * m.lanes, 1, m.lanes) for v in range(wide)] for p in range(pixels)]
            for v in range(wide):
                start = T.Bind(bias[T.ramp(phase + channel + v * m.lanes, 1, m.lanes)])
                for p in range(pixels):
                    T.buffer_store(total, start, [places[p][v]])
            _accumulate(T, g, m, staged, columns, quads, origin, weight, packed, total, places)
            row = T.Bind((t.row + line) * ph + r)
            for v in range(wide):
                lane, beside = channel + v * m.lanes, v * m.lanes
                for p in range(pixels):
                    column = T.Bind((t.column + first + p) * pw + q)
                    at = Pixel(t.image, row, column, group * outs + inner + beside, inner + beside, outs)
                    with _guard(T, column < g.out[1], pw > 1):
                        _finish(T, op, g, m, total, (p * wide + v) * m.lanes, range(m.lanes), ratio, lane, out, at)

        tiles = -(-c.columns // pixels)
        loops = T.serial(0, ph), T.serial(0, pw), T.serial(0, t.blocks), T.serial(0, t.rows), T.serial(0, tiles)
        with loops[0] as r, loops[1] as q, loops[2] as b, loops[3] as line, loops[4] as number:
            there = (t.row + line) * ph + r < g.out[0]
            with _guard(T, there, ph > 1):
                tile(line, r, q, t.block + b, number)

    _tasks(T, g, c, blocks, task)


def _accumulate(
    T: Any, g: Geometry, m: Machine, staged: Any, columns: int, quads: int, origin: Any, weight: Any, packed: Any,
    total: Any, places: Sequence[Sequence[Any]],
) -> None:  # fmt: skip
    """Add a register tile's products to `total`, whose vectors lie at places[pixel][vector].

    quads: instructions for one tap of a group. origin: the first that the tile reads of `staged`, with `columns` pixels a row.
    packed: its first weight.
    """
    (kh, kw), chunk, step = g.kernel, m.chunk(quads), m.lanes * m.group
    pixels, wide = range(len(places)), range(len(places[0]))
    with T.serial(0, kh) as y, T.serial(0, kw) as z, T.serial(0, quads // chunk) as k:
        at = T.Bind(packed + ((y * kw + z) * quads + k * chunk) * step)
        tap = y * (g.dilation[0] * columns) + z * g.dilation[1]
        place = T.Bind(origin + tap * (g.groups * quads) + k * chunk)
        inputs = [m.load(T, staged, place + p * (g.stride[1] * g.groups * quads), chunk) for p in pixels]
        if chunk > 1:
            inputs = [T.Bind(i) for i in inputs]
        for j in range(chunk):
            rows = [at + v * (kh * kw * quads * step) + j * step for v in wide]
            loaded = [T.Bind(weight[T.ramp(start, 1, step)]) for start in rows]
            for p in pixels:
                data = m.spread(T, inputs[p], j, chunk)
                for v in wide:
                    T.buffer_store(total, m.dot(T, total[places[p][v]], data, loaded[v]), [places[p][v]])


def _depthwise(
    T: Any, op: IntegerOp, g: Geometry, m: Machine, x: Any, weight: Any, bias: Any, ratio: Any, out: Any
) -> None:
    """Each channel by itself: vectors run along the channels, a few neighbouring pixels share their weights."""
    zero_point = op.input_qparams[0].zero
    lanes = m.deep
    blocks = -(-g.channels // lanes)
    channels = blocks * lanes
    pixels = min(6, g.out[1])
    kh, kw = g.kernel
    instructions = g.batch * g.out[0] * g.out[1] * blocks * kh * kw
    c = cut(g, instructions, channels * 2, pixels, 1)
    pixels = min(pixels, c.columns)
    whole = dataclasses.replace(g, groups=1)

    def read(buffer: Any, start: Any, width: int) -> Any:
        stored = buffer[T.ramp(start, 1, width) if width > 1 else start]
        return widened(T, stored, -zero_point, width)

    def task(t: Task) -> None:
        staged, columns = _stage(T, m, whole, c, t, x, "int16", channels, 0, read)
        tiles = -(-c.columns // pixels)
        with T.serial(0, blocks) as block, T.serial(0, t.rows) as line, T.serial(0, tiles) as number:
            channel = T.Bind(block * lanes)
            first = T.Bind(T.min(number * pixels, c.columns - pixels))
            origin = T.Bind((line * g.stride[0] * columns + first * g.stride[1]) * channels + channel)
            total = T.alloc_buffer((pixels * lanes,), "int32", scope="global")
            places = [T.ramp(p * lanes, 1, lanes) for p in range(pixels)]
            start = T.Bind(bias[T.ramp(channel, 1, lanes)])
            for p in range(pixels):
                T.buffer_store(total, start, [places[p]])
            with T.serial(0, kh) as y:
                for z in range(kw):
                    stored = weight[T.ramp((y * kw + z) * channels + channel, 1, lanes)]
                    taps = T.Bind(T.cast(stored, f"int16x{lanes}"))
                    data = T.Bind(origin + (y * (g.dilation[0] * columns) + z * g.dilation[1]) * channels)
                    for p in range(pixels):
                        value = staged[T.ramp(data + p * g.stride[1] * channels, 1, lanes)]
                        T.buffer_store(total, m.multiply(T, total[places[p]], value, taps), [places[p]])
            for p in range(pixels):
                at = Pixel(t.image, t.row + line, t.column + first + p, channel, channel, g.channels)
                _finish(T, op, g, m, total, p * lanes, m.order, ratio, channel, out, at)

    _tasks(T, g, c, 1, task)


@dataclass(frozen=True, slots=True)
class Pixel:
    """Where a vector of outputs goes: image, row, column, first channel, the same within its group, channels of a group."""

    image: Any
    row: Any
    column: Any
    channel: Any
    inner: Any
    outs: int


def _finish(
    T: Any,
    op: IntegerOp,
    g: Geometry,
    m: Machine,
    total: Any,
    start: int,
    order: Sequence[int],
    ratio: Any,
    lane: Any,
    out: Any,
    at: Pixel,
) -> None:
    """Requantize the vector of sums at `start` and write it at a pixel, leaving out channels that do not exist.

    order: which channel each sum belongs to. ratio: multipliers, the vector's from `lane` on.
    """
    lanes = len(order)
    spot = (at.image * g.out[0] + at.row) * g.out[1] + at.column
    every = T.ramp(start, 1, lanes)
    if not m.scalar and g.last and at.outs % lanes == 0:
        value = m.requantize(T, total[every], ratio[T.ramp(lane, 1, lanes)], op, lanes)
        T.buffer_store(out, value, [T.ramp(spot * g.out_channels + at.channel, 1, lanes)])
        return
    if m.scalar:
        held = T.alloc_buffer((lanes,), "int32", scope="global")
        T.buffer_store(held, total[every], [T.ramp(0, 1, lanes)])
    else:
        held = T.alloc_buffer((lanes,), "int8", scope="global")
        value = m.requantize(T, total[every], ratio[T.ramp(lane, 1, lanes)], op, lanes)
        T.buffer_store(held, value, [T.ramp(0, 1, lanes)])
    with T.serial(0, T.max(0, T.min(lanes, at.outs - at.inner))) as k:
        if g.last:
            place = spot * g.out_channels + at.channel + k
        else:
            place = (at.image * g.out_channels + at.channel + k) * g.out[1] + at.column
        index = k if list(order) == list(range(lanes)) else k % 2 * (lanes // 2) + k // 2
        T.buffer_store(out, m.requantize(T, held[index], ratio[lane + k], op, 1) if m.scalar else held[k], [place])


@contextmanager
def _guard(T: Any, condition: Any, needed: bool) -> Iterator[None]:
    """Emit what follows, under `condition` where it is needed."""
    if not needed:
        yield
        return
    with T.If(condition), T.Then():
        yield
