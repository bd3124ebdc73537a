"""Convolution and matrix product as TIR: int8 × int8 → int32 sums, then one multiply, round and clip per output.

Activations of four axes lie channels-last, [N, H, W, C]. A kernel first stages its input (padded, widened as the
machine's instruction wants it), then keeps a tile of pixels × output channels in registers through the whole sum.
Every kernel is one PrimFunc (x, weight, bias, multiplier) → out, see `pack` for the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeq.backends.tvm.schedule import Machine
from edgeq.backends.tvm.tir import flat, prim_func, requantize, runs, store_all
from edgeq.graph.integer import IntegerOp
from edgeq.graph.ops import ConvAttrs

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Every kind of sum in one form.

    Output row i·phases + r reads staged rows i·stride + (r + shift) // phases + k·dilation for k < kernel, where the
    staged input has `pad` rows of zero points in front; likewise columns. Convolutions have one phase; a transposed
    convolution of stride s has s, each a small convolution of its own.
    last: whether channels are the fastest axis of input and output; else ([N, C, L]) they are the slowest but one.
    """

    batch: int
    size: tuple[int, int]
    out: tuple[int, int]
    channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    phases: tuple[int, int] = (1, 1)
    shift: tuple[int, int] = (0, 0)
    last: bool = True

    @property
    def per_phase(self) -> tuple[int, int]:
        """Output rows and columns of the longest phase."""
        return -(-self.out[0] // self.phases[0]), -(-self.out[1] // self.phases[1])

    @property
    def staged(self) -> tuple[int, int]:
        """Rows and columns of the staged input: what some output reads."""
        return self._staged(0), self._staged(1)

    def _staged(self, axis: int) -> int:
        last_phase = (self.phases[axis] - 1 + self.shift[axis]) // self.phases[axis]
        reach = (self.kernel[axis] - 1) * self.dilation[axis]
        return (self.per_phase[axis] - 1) * self.stride[axis] + last_phase + reach + 1


def geometry(op: IntegerOp, x: tuple[int, ...], out: tuple[int, ...]) -> tuple[Geometry, Array]:
    """The sum of `op` on torch shapes x → out, and its weights as [phase, C_out, C_in/groups, kh, kw] int8."""
    assert op.weight is not None
    w = op.weight.numpy()
    if op.kind == "linear":
        rows = int(np.prod(x[:-1], dtype=np.int64))
        return Geometry(1, (1, rows), (1, rows), x[-1], out[-1], 1, (1, 1)), w[None, :, :, None, None]
    a = op.attrs
    assert isinstance(a, ConvAttrs)
    if op.kind == "conv1d":
        (s,), (p,), (d,) = a.stride, a.padding, a.dilation
        g = Geometry(
            x[0], (1, x[2]), (1, out[2]), x[1], out[1], a.groups, (1, w.shape[2]), (1, s), (1, d), (0, p), last=False
        )
        return g, w[None, :, :, None, :]
    size, result = (x[2], x[3]), (out[2], out[3])
    if op.kind == "conv_transpose2d":
        return _transposed(a, w, x[0], size, result)
    kernel = (w.shape[2], w.shape[3])
    stride, dilation, padding = _pair(a.stride), _pair(a.dilation), _pair(a.padding)
    if kernel == (1, 1) and stride == (1, 1) and padding == (0, 0):  # pixels are independent: one long row
        size = result = (1, x[0] * x[2] * x[3])
        return Geometry(1, size, result, x[1], out[1], a.groups, kernel), w[None]
    return Geometry(x[0], size, result, x[1], out[1], a.groups, kernel, stride, dilation, padding), w[None]


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def _transposed(
    a: ConvAttrs, w: Array, batch: int, size: tuple[int, int], out: tuple[int, int]
) -> tuple[Geometry, Array]:
    """A transposed convolution as stride² plain ones: output s·i + r takes the taps k ≡ r + padding (mod s)."""
    cin, per_group = w.shape[:2]
    (sh, sw), (dh, dw), shift = _pair(a.stride), _pair(a.dilation), _pair(a.padding)
    spread = np.zeros((cin, per_group, (w.shape[2] - 1) * dh + 1, (w.shape[3] - 1) * dw + 1), np.int8)
    spread[:, :, ::dh, ::dw] = w
    taps = (-(-spread.shape[2] // sh), -(-spread.shape[3] // sw))
    groups, each = a.groups, cin // a.groups
    phases = np.zeros((sh * sw, groups * per_group, each, *taps), np.int8)
    for r in range(sh):
        for q in range(sw):
            part = spread[:, :, (r + shift[0]) % sh :: sh, (q + shift[1]) % sw :: sw]
            part = part.reshape(groups, each, per_group, *part.shape[2:]).swapaxes(1, 2)
            part = part.reshape(groups * per_group, each, *part.shape[3:])[:, :, ::-1, ::-1]
            phases[r * sw + q, :, :, taps[0] - part.shape[2] :, taps[1] - part.shape[3] :] = part
    g = Geometry(
        batch, size, out, cin, groups * per_group, groups, taps,
        pad=(taps[0] - 1, taps[1] - 1), phases=(sh, sw), shift=shift,
    )  # fmt: skip
    return g, phases


@dataclass(frozen=True, slots=True)
class Packed:
    """Constants of one kernel: weight int8, bias int32 and multiplier float32, padded to whole vectors."""

    weight: Array
    bias: Array
    multiplier: Array


def multiplier(op: IntegerOp) -> Array:
    """float32(s_in)·float32(s_w[c]) / float32(s_out), each step rounded to float32: XNNPACK's order."""
    assert op.weight_scale is not None
    scale_in, scale_out = np.float32(op.input_qparams[0].scale[0]), np.float32(op.output_qparams.scale[0])
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
    ratio, zero_point = multiplier(op), op.input_qparams[0].zero_point[0]
    if is_depthwise(g):
        folded = bias - zero_point * w[0].astype(np.int64).sum((1, 2, 3))
        return Packed(np.ascontiguousarray(w[0, :, 0].transpose(1, 2, 0)), folded.astype(np.int32), ratio)
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
        wide = np.zeros((*per_channel.shape[:-1], g.groups, vectors * machine.lanes), dtype)
        wide[..., :outs] = per_channel.reshape(*per_channel.shape[:-1], g.groups, outs)
        return wide.reshape(-1)

    return Packed(weight, lanes(by_phase, np.int32), lanes(ratio, np.float32))


def kernel(
    op: IntegerOp, g: Geometry, packed: Packed, machine: Machine, x: tuple[int, ...], out: tuple[int, ...]
) -> Any:
    """The PrimFunc of `op`; x and out are the shapes as they lie in memory."""
    params = [("x", x, "int8"), ("weight", packed.weight.shape, "int8"), ("bias", packed.bias.shape, "int32")]
    params += [("multiplier", packed.multiplier.shape, "float32"), ("out", out, "int8")]
    body = _depthwise if is_depthwise(g) else _dense
    return prim_func(op.kind, params, lambda T, buffers: body(T, op, g, machine, *map(lambda b: flat(T, b), buffers)))


def _stage(T: Any, g: Geometry, x: Any, dtype: str, channels: int, fill: int, read: Any) -> Any:
    """Copy the input into [N, rows, columns, groups, channels] with `fill` around it; `read` converts a vector."""
    rows, columns = g.staged
    each = g.channels // g.groups
    pixel = g.groups * channels
    staged = T.alloc_buffer((g.batch * rows * columns * pixel,), dtype, scope="global")
    inside = max(0, min(g.size[1], columns - g.pad[1]))  # columns that some output reads

    def fill_run(start: Any, count: int) -> None:
        for base, lanes in runs(T, count, 32):
            store_all(T, staged, start + base, T.cast(T.int32(fill), dtype), lanes)

    with T.parallel(0, g.batch * rows) as task:
        row = T.Bind(task % rows - g.pad[0])
        line = T.Bind(task * (columns * pixel))
        with T.If(T.And(row >= 0, row < g.size[0])):
            with T.Then():
                fill_run(line, g.pad[1] * pixel)
                target = T.Bind(line + g.pad[1] * pixel)
                at = T.Bind((task // rows) * g.size[0] + row)  # input line
                if g.last and channels == each:
                    for base, lanes in runs(T, inside * pixel, 32):
                        value = read(x, at * (g.size[1] * g.channels) + base, lanes)
                        store_all(T, staged, target + base, value, lanes)
                else:
                    with T.serial(0, inside) as w, T.serial(0, g.channels) as c:
                        source = at * (g.size[1] * g.channels) + (w * g.channels + c if g.last else c * g.size[1] + w)
                        place = target + w * pixel + (c // each) * channels + c % each
                        T.buffer_store(staged, read(x, source, 1), [place])
                fill_run(line + (g.pad[1] + inside) * pixel, (columns - g.pad[1] - inside) * pixel)
            with T.Else():
                fill_run(line, columns * pixel)
    return staged


def _dense(
    T: Any, op: IntegerOp, g: Geometry, m: Machine, x: Any, weight: Any, bias: Any, ratio: Any, out: Any
) -> None:
    zero_point = op.input_qparams[0].zero_point[0]
    each, outs = g.channels // g.groups, g.out_channels // g.groups
    quads, vectors = -(-each // m.group), -(-outs // m.lanes)
    offset = -zero_point if m.offset is None else m.offset

    def read(buffer: Any, start: Any, lanes: int) -> Any:
        index = T.ramp(start, 1, lanes) if lanes > 1 else start
        wide = f"int16x{lanes}" if lanes > 1 else "int16"
        shifted = T.cast(buffer[index], wide) + T.cast(T.int32(offset), "int16")
        return T.cast(shifted, f"{m.staged}x{lanes}" if lanes > 1 else m.staged)

    staged = _stage(T, g, x, m.staged, quads * m.group, zero_point + offset, read)
    rows, columns = g.staged
    (out_rows, out_columns), (ph, pw) = g.per_phase, g.phases
    pixels, wide = m.tile(out_columns, vectors)
    blocks, tiles = vectors // wide, -(-out_columns // pixels)
    pixel = g.groups * quads * m.group
    kh, kw = g.kernel
    step = m.lanes * m.group

    def tile(n: Any, i: Any, r: Any, q: Any, group: Any, block: Any, number: Any) -> None:
        """One register tile: `pixels` outputs of row i, `wide` vectors of output channels."""
        first = T.Bind(T.min(number * pixels, out_columns - pixels))
        channel = T.Bind(group * (vectors * m.lanes) + block * (wide * m.lanes))
        phase = (r * pw + q) * (g.groups * vectors * m.lanes)
        top = i * g.stride[0] + (r + g.shift[0]) // ph
        left = first * g.stride[1] + (q + g.shift[1]) // pw
        origin = T.Bind(((n * rows + top) * columns + left) * pixel + group * (quads * m.group))
        packed = T.Bind((((r * pw + q) * g.groups + group) * vectors + block * wide) * (kh * kw * quads * step))
        total = T.alloc_buffer((pixels * wide * m.lanes,), "int32", scope="global")
        places = [[T.ramp((p * wide + v) * m.lanes, 1, m.lanes) for v in range(wide)] for p in range(pixels)]
        for v in range(wide):
            start = T.Bind(bias[T.ramp(phase + channel + v * m.lanes, 1, m.lanes)])
            for p in range(pixels):
                T.buffer_store(total, start, [places[p][v]])
        with T.serial(0, kh) as y, T.serial(0, kw) as z, T.serial(0, quads) as c:
            at = T.Bind(packed + ((y * kw + z) * quads + c) * step)
            data = T.Bind(origin + (y * (g.dilation[0] * columns) + z * g.dilation[1]) * pixel + c * m.group)
            loaded = [T.Bind(weight[T.ramp(at + v * (kh * kw * quads * step), 1, step)]) for v in range(wide)]
            for p in range(pixels):
                place = data + p * (g.stride[1] * pixel)
                group_of = staged[T.ramp(place, 1, m.group) if m.group > 1 else place]
                for v in range(wide):
                    T.buffer_store(total, m.dot(T, total[places[p][v]], group_of, loaded[v]), [places[p][v]])
        for v in range(wide):
            lane = channel + v * m.lanes
            scale = T.Bind(ratio[T.ramp(lane, 1, m.lanes)])
            inner = block * (wide * m.lanes) + v * m.lanes  # output channel within its group
            for p in range(pixels):
                value = requantize(T, total[places[p][v]], scale, op, m.lanes)
                column = (first + p) * pw + q
                spot = (n * g.out[0] + i * ph + r) * g.out[1] + column
                _store(T, g, out, value, n, spot, column, group * outs + inner, inner, outs, m.lanes)

    if g.batch * out_rows * ph >= 8 or tiles >= 16:
        chunk = 8 if g.batch * out_rows * ph < 8 else tiles  # a long single row is cut into chunks of tiles
        chunks = -(-tiles // chunk)
        with T.parallel(0, g.batch * ph * out_rows * chunks) as task:
            line = T.Bind(task // chunks)
            n, i, r = line // (ph * out_rows), line // ph % out_rows, line % ph
            loops = T.serial(0, pw), T.serial(0, g.groups), T.serial(0, blocks), T.serial(0, chunk)
            with loops[0] as q, loops[1] as group, loops[2] as block, loops[3] as t:
                number = T.min((task % chunks) * chunk + t, tiles - 1)
                _guard(T, i * ph + r < g.out[0], ph > 1, lambda: tile(n, i, r, q, group, block, number))
    else:
        lines = T.parallel(0, g.groups * blocks), T.serial(0, g.batch * ph * out_rows)
        with lines[0] as task, lines[1] as line, T.serial(0, pw) as q, T.serial(0, tiles) as number:
            n, i, r = line // (ph * out_rows), line // ph % out_rows, line % ph
            group, block = task // blocks, task % blocks
            _guard(T, i * ph + r < g.out[0], ph > 1, lambda: tile(n, i, r, q, group, block, number))


def _guard(T: Any, condition: Any, needed: bool, body: Any) -> None:
    """Emit `body`, under `condition` where it is needed."""
    if not needed:
        body()
        return
    with T.If(condition), T.Then():
        body()


def _store(
    T: Any,
    g: Geometry,
    out: Any,
    value: Any,
    n: Any,
    spot: Any,
    column: Any,
    channel: Any,
    inner: Any,
    outs: int,
    lanes: int,
) -> None:
    """Write one vector of output channels at a pixel, leaving out channels and columns that do not exist."""
    whole = g.last and outs % lanes == 0

    def write() -> None:
        if whole:
            T.buffer_store(out, value, [T.ramp(spot * g.out_channels + channel, 1, lanes)])
            return
        held = T.alloc_buffer((lanes,), "int8", scope="global")
        T.buffer_store(held, value, [T.ramp(0, 1, lanes)])
        with T.serial(0, T.max(0, T.min(lanes, outs - inner))) as lane:
            if g.last:
                place = spot * g.out_channels + channel + lane
            else:
                place = (n * g.out_channels + channel + lane) * g.out[1] + column
            T.buffer_store(out, held[lane], [place])

    _guard(T, column < g.out[1], g.phases[1] > 1, write)


def _depthwise(
    T: Any, op: IntegerOp, g: Geometry, m: Machine, x: Any, weight: Any, bias: Any, ratio: Any, out: Any
) -> None:
    """Each channel by itself: vectors run along the channels, a few neighbouring pixels share their weights."""
    zero_point = op.input_qparams[0].zero_point[0]

    def read(buffer: Any, start: Any, lanes: int) -> Any:
        return buffer[T.ramp(start, 1, lanes) if lanes > 1 else start]

    staged = _stage(T, g, x, "int8", 1, zero_point, read)
    rows, columns = g.staged
    out_rows, out_columns = g.out
    channels, lanes = g.channels, min(g.channels, m.lanes)
    vectors = -(-channels // lanes)
    pixels = min(6, out_columns)
    tiles = -(-out_columns // pixels)
    with T.parallel(0, g.batch * out_rows) as line, T.serial(0, tiles) as number, T.serial(0, vectors) as block:
        n, i = line // out_rows, line % out_rows
        first = T.Bind(T.min(number * pixels, out_columns - pixels))
        channel = T.Bind(T.min(block * lanes, channels - lanes))
        origin = T.Bind(((n * rows + i * g.stride[0]) * columns + first * g.stride[1]) * channels + channel)
        total = T.alloc_buffer((pixels * lanes,), "int32", scope="global")
        places = [T.ramp(p * lanes, 1, lanes) for p in range(pixels)]
        start = T.Bind(bias[T.ramp(channel, 1, lanes)])
        for p in range(pixels):
            T.buffer_store(total, start, [places[p]])
        with T.serial(0, g.kernel[0]) as y:
            for z in range(g.kernel[1]):
                taps = T.Bind(
                    T.cast(weight[T.ramp((y * g.kernel[1] + z) * channels + channel, 1, lanes)], f"int32x{lanes}")
                )
                data = T.Bind(origin + (y * (g.dilation[0] * columns) + z * g.dilation[1]) * channels)
                for p in range(pixels):
                    value = staged[T.ramp(data + p * g.stride[1] * channels, 1, lanes)]
                    product = T.cast(value, f"int32x{lanes}") * taps
                    T.buffer_store(total, total[places[p]] + product, [places[p]])
        scale = T.Bind(ratio[T.ramp(channel, 1, lanes)])
        for p in range(pixels):
            value = requantize(T, total[places[p]], scale, op, lanes)
            spot = line * out_columns + first + p
            T.buffer_store(out, value, [T.ramp(spot * channels + channel, 1, lanes)])
