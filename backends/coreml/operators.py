"""What each MIL operator computes, in torch: written from the operator descriptions in coremltools' documentation.

Shares nothing with the converter. An operator takes its parameters by their MIL names and returns its result, or a
tuple of results. Floats arrive as float32 whatever the program declares; the interpreter rounds what comes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeq.spec import EdgeqError

Parameters = Mapping[str, Any]  # tensors, strings, or a tuple of tensors for `values`
Operator = Callable[[Parameters], Any]

DTYPES = {
    "bool": torch.bool,
    "fp16": torch.float32,  # narrowed by the interpreter, where it runs in half precision
    "fp32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,  # torch computes little in uint16; its values fit int32
    "int32": torch.int32,
}


def ints(value: Tensor | None) -> list[int]:
    """A constant vector as Python integers; empty where the parameter is left out."""
    return [] if value is None else [int(i) for i in value.flatten()]


def data(a: Parameters, name: str = "x") -> Tensor:
    """The tensor parameter that an operator computes on."""
    value = a[name]
    assert isinstance(value, Tensor)
    return value


def scalar(a: Parameters, name: str, default: float) -> float:
    """A constant scalar parameter, or its default."""
    return float(a[name]) if name in a else default


def flag(a: Parameters, name: str) -> bool:
    """A constant boolean parameter; False where it is left out."""
    return name in a and bool(a[name])


# ---------------------------------------------------------------- quantization


def quantize(a: Parameters) -> Tensor:
    """clip(round(input / scale) + zero_point): ties go to even, as in coremltools' own constant folding."""
    x, bounds = data(a, "input"), torch.iinfo(DTYPES[a["output_dtype"]])
    scale, zero_point = (_along(a, name, x.dim()) for name in ("scale", "zero_point"))
    steps = torch.round(x / scale)
    if zero_point is not None:
        steps = steps + zero_point.float()
    return steps.clamp(bounds.min, bounds.max).to(DTYPES[a["output_dtype"]])


def dequantize(a: Parameters) -> Tensor:
    """scale * (input - zero_point)."""
    q = data(a, "input" if "input" in a else "quantized_data")
    scale, zero_point = (_along(a, name, q.dim()) for name in ("scale", "zero_point"))
    shifted = q.float() if zero_point is None else q.float() - zero_point.float()
    real: Tensor = shifted * scale
    return real


def _along(a: Parameters, name: str, rank: int) -> Any:
    """A scalar parameter as it is, a vector shaped to broadcast along `axis`."""
    if name not in a or a[name].dim() == 0:
        return a.get(name)
    shape = [1] * rank
    shape[int(a["axis"])] = -1
    return a[name].view(shape)


# ---------------------------------------------------------------- convolution and pooling


def same_padding(sizes: list[int], kernel: list[int], stride: list[int], lower: bool) -> list[int]:
    """Before and after each axis so that the output has ceil(size / stride); the odd one goes after, or before."""
    padding = []
    for size, extent, step in zip(sizes, kernel, stride, strict=True):
        total = max(0, (math.ceil(size / step) - 1) * step + extent - size)
        small = total // 2
        padding += [total - small, small] if lower else [small, total - small]
    return padding


def padding_of(a: Parameters, sizes: list[int], kernel: list[int], stride: list[int]) -> list[int]:
    """Padding before and after each spatial axis, from pad_type and pad."""
    pad_type = a.get("pad_type", "valid")
    if pad_type == "custom":
        return ints(a["pad"])
    if pad_type in ("same", "same_lower"):
        return same_padding(sizes, kernel, stride, pad_type == "same_lower")
    return [0] * (2 * len(sizes))


def torch_pad(pairs: list[int]) -> list[int]:
    """MIL lists (before, after) from the first axis on, torch from the last."""
    return [amount for axis in range(len(pairs) - 2, -1, -2) for amount in pairs[axis : axis + 2]]


def conv(a: Parameters) -> Tensor:
    """Convolution over 1 to 3 spatial axes."""
    x, w = data(a), a["weight"]
    axes = x.dim() - 2
    stride, dilation = ints(a.get("strides")) or [1] * axes, ints(a.get("dilations")) or [1] * axes
    extent = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
    pairs = padding_of(a, list(x.shape[2:]), extent, stride)
    function = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    padding = pairs[::2]
    if padding != pairs[1::2]:
        x, padding = F.pad(x, torch_pad(pairs)), [0] * axes
    groups = int(a["groups"]) if "groups" in a else 1
    return function(x, w, a.get("bias"), stride, padding, dilation, groups)


def conv_transpose(a: Parameters) -> Tensor:
    """Transposed convolution: the whole spread, then `pad` cropped off and cut to `output_shape`."""
    x, w = data(a), a["weight"]
    axes = x.dim() - 2
    stride, dilation = ints(a.get("strides")) or [1] * axes, ints(a.get("dilations")) or [1] * axes
    groups = int(a["groups"]) if "groups" in a else 1
    pad_type = a.get("pad_type", "valid")
    if pad_type not in ("valid", "custom"):
        raise EdgeqError(f"conv_transpose with pad_type {pad_type!r} is not interpreted: use explicit padding")
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    whole = function(x, w, None, stride, 0, 0, groups, dilation)
    pairs = ints(a["pad"]) if pad_type == "custom" else [0] * (2 * axes)
    sizes = ints(a.get("output_shape"))[2:] or [
        n - pairs[2 * i] - pairs[2 * i + 1] for i, n in enumerate(whole.shape[2:])
    ]
    for axis, size in enumerate(sizes):
        start = pairs[2 * axis]
        short = start + size - whole.shape[axis + 2]
        if short > 0:
            tail = [0] * (2 * (axes - 1 - axis)) + [0, short]
            whole = F.pad(whole, tail)
        whole = whole.narrow(axis + 2, start, size)
    return whole if "bias" not in a else whole + a["bias"].view(-1, *[1] * axes)


def max_pool(a: Parameters) -> Tensor:
    """Maximum over windows; padding never wins."""
    x, kernel, stride, pairs, ceil_mode = _pool(a)
    function = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[len(kernel) - 1]
    if pairs[::2] == pairs[1::2] and all(2 * p <= k for p, k in zip(pairs[::2], kernel, strict=True)):
        return function(x, kernel, stride, pairs[::2], 1, ceil_mode)
    return function(F.pad(x, torch_pad(pairs), value=-math.inf), kernel, stride, 0, 1, ceil_mode)


def avg_pool(a: Parameters) -> Tensor:
    """Mean over windows; padded zeros count unless exclude_padding_from_average."""
    x, kernel, stride, pairs, ceil_mode = _pool(a)
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(kernel) - 1]
    exclude = flag(a, "exclude_padding_from_average")
    if pairs[::2] == pairs[1::2] and all(2 * p <= k for p, k in zip(pairs[::2], kernel, strict=True)):
        pooled: Tensor = function(x, kernel, stride, pairs[::2], ceil_mode, not exclude)
        return pooled
    total: Tensor = function(F.pad(x, torch_pad(pairs)), kernel, stride, 0, ceil_mode)
    inside = function(F.pad(torch.ones_like(x), torch_pad(pairs)), kernel, stride, 0, ceil_mode)
    return total / inside if exclude else total


def _pool(a: Parameters) -> tuple[Tensor, list[int], list[int], list[int], bool]:
    x, kernel = data(a), ints(a["kernel_sizes"])
    stride = ints(a.get("strides")) or [1] * len(kernel)
    return x, kernel, stride, padding_of(a, list(x.shape[2:]), kernel, stride), flag(a, "ceil_mode")


# ---------------------------------------------------------------- normalisation, linear algebra


def batch_norm(a: Parameters) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta along axis 1."""
    epsilon = scalar(a, "epsilon", 1e-5)
    return F.batch_norm(a["x"], a["mean"], a["variance"], a.get("gamma"), a.get("beta"), False, 0.0, epsilon)


def instance_norm(a: Parameters) -> Tensor:
    """Each channel of each sample by its own mean and variance."""
    return _normalise(a, list(range(2, a["x"].dim())), [1, -1] + [1] * (a["x"].dim() - 2))


def layer_norm(a: Parameters) -> Tensor:
    """Over `axes` together; gamma and beta have the shape of those axes."""
    x = data(a)
    axes = sorted(i % x.dim() for i in ints(a.get("axes"))) or list(range(x.dim()))
    return _normalise(a, axes, [n if i in axes else 1 for i, n in enumerate(x.shape)])


def _normalise(a: Parameters, axes: list[int], shape: list[int]) -> Tensor:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta, in double, so that the order of the sums is no matter."""
    x = data(a).double()
    centred = x - x.mean(axes, keepdim=True)
    y = centred / torch.sqrt(centred.square().mean(axes, keepdim=True) + scalar(a, "epsilon", 1e-5))
    if "gamma" in a:
        y = y * a["gamma"].double().view(shape)
    if "beta" in a:
        y = y + a["beta"].double().view(shape)
    return y.float()


def l2_norm(a: Parameters) -> Tensor:
    """x / sqrt(sum of squares over the last three axes + epsilon)."""
    x = data(a)
    return x / torch.sqrt(x.square().sum((-3, -2, -1), keepdim=True) + scalar(a, "epsilon", 1e-6))


def matmul(a: Parameters) -> Tensor:
    """Batched matrix product, either side transposed first."""
    x = data(a).transpose(-1, -2) if flag(a, "transpose_x") else a["x"]
    y = a["y"].transpose(-1, -2) if flag(a, "transpose_y") else a["y"]
    return torch.matmul(x, y)


def linear(a: Parameters) -> Tensor:
    """x · weightᵀ + bias."""
    return F.linear(a["x"], a["weight"], a.get("bias"))


# ---------------------------------------------------------------- shapes and movement


def expand_dims(a: Parameters) -> Tensor:
    """New axes of size 1 at `axes` of the result."""
    x, axes = data(a), ints(a["axes"])
    rank = x.dim() + len(axes)
    for axis in sorted(i % rank for i in axes):
        x = x.unsqueeze(axis)
    return x


def squeeze(a: Parameters) -> Tensor:
    """Axes of size 1 away, all of them where `axes` is left out."""
    x = data(a)
    return x.squeeze(tuple(ints(a["axes"]))) if "axes" in a else x.squeeze()


def reshape(a: Parameters) -> Tensor:
    """New shape; 0 keeps the size of that axis, -1 takes what is left."""
    x, shape = data(a), ints(a["shape"])
    return x.reshape([x.shape[i] if n == 0 and len(shape) == x.dim() else n for i, n in enumerate(shape)])


def slice_by_index(a: Parameters) -> Tensor:
    """x[begin:end:stride] along each axis, negative strides and single indices (squeeze_mask) included."""
    x = data(a)
    rank = x.dim()
    begin, end, stride = ints(a["begin"]), ints(a["end"]), ints(a.get("stride")) or [1] * rank
    masks = {name: [bool(b) for b in a[name]] if name in a else [False] * rank for name in _MASKS}
    squeezed = []
    for axis in range(rank):
        if masks["squeeze_mask"][axis]:
            at = begin[axis] % x.shape[axis]
            x = x.narrow(axis, at, 1)
            squeezed.append(axis)
            continue
        first = None if masks["begin_mask"][axis] else begin[axis]
        last = None if masks["end_mask"][axis] else end[axis]
        taken = range(x.shape[axis])[first : last : stride[axis]]
        x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64))
    return x.squeeze(tuple(squeezed)) if squeezed else x


_MASKS = ("begin_mask", "end_mask", "squeeze_mask")


def slice_by_size(a: Parameters) -> Tensor:
    """`size` elements from `begin` along each axis; -1 takes the rest."""
    x = data(a)
    for axis, (start, size) in enumerate(zip(ints(a["begin"]), ints(a["size"]), strict=True)):
        start = start % x.shape[axis] if start < 0 else start
        x = x.narrow(axis, start, x.shape[axis] - start if size == -1 else size)
    return x


def split(a: Parameters) -> tuple[Tensor, ...]:
    """Parts of the given sizes, or as many equal parts as asked."""
    x, axis = data(a), int(a["axis"])
    if "split_sizes" in a:
        return torch.split(x, ints(a["split_sizes"]), axis)
    return torch.split(x, x.shape[axis] // int(a["num_splits"]), axis)


def concat(a: Parameters) -> Tensor:
    """Side by side along `axis`, or element by element where `interleave` is set."""
    values, axis = a["values"], int(a["axis"])
    if flag(a, "interleave"):
        axis = axis % values[0].dim()
        return torch.stack(values, axis + 1).flatten(axis, axis + 1)
    return torch.cat(values, axis)


def pad(a: Parameters) -> Tensor:
    """The last axes padded: constant, reflect or replicate."""
    x, pairs, mode = data(a), ints(a["pad"]), a.get("mode", "constant")
    if mode == "constant":
        return F.pad(x, torch_pad(pairs), value=scalar(a, "constant_val", 0.0))
    # axis by axis through indices, because torch's own modes are bound to certain ranks
    first = x.dim() - len(pairs) // 2
    for axis in range(first, x.dim()):
        before, after = pairs[2 * (axis - first) : 2 * (axis - first) + 2]
        size = x.shape[axis]
        at = torch.arange(-before, size + after)
        at = at.clamp(0, size - 1) if mode == "replicate" else (size - 1) - ((size - 1) - at.abs()).abs()
        x = x.index_select(axis, at)
    return x


def gather(a: Parameters) -> Tensor:
    """Slices of x along `axis` at `indices`, the first batch_dims axes going together."""
    x, at = data(a), a["indices"].to(torch.int64)
    axis = (int(a["axis"]) if "axis" in a else 0) % x.dim()
    batch = int(a["batch_dims"]) if "batch_dims" in a else 0
    _check_indices(at, x.shape[axis])
    if batch == 0:
        shape = (*x.shape[:axis], *at.shape, *x.shape[axis + 1 :])
        return x.index_select(axis, at.flatten()).reshape(shape)
    rows = [gather({**a, "x": p, "indices": i, "axis": torch.tensor(axis - 1), "batch_dims": torch.tensor(batch - 1)})
            for p, i in zip(x, at, strict=True)]  # fmt: skip
    return torch.stack(rows)


def gather_along_axis(a: Parameters) -> Tensor:
    """Elements along `axis` at the places that `indices` names for each position."""
    axis = int(a["axis"]) if "axis" in a else 0
    at = a["indices"].to(torch.int64)
    _check_indices(at, a["x"].shape[axis])
    return torch.gather(a["x"], axis, at)


def gather_nd(a: Parameters) -> Tensor:
    """Slices of x at index vectors along its first axes; batch_dims 0 only."""
    if int(a.get("batch_dims", 0)) != 0:
        raise EdgeqError("gather_nd with batch_dims is not interpreted")
    return a["x"][tuple(a["indices"].to(torch.int64).unbind(-1))]  # type: ignore[no-any-return] # parameters are Any


def scatter(a: Parameters) -> Tensor:
    """data with slices along `axis` at `indices` combined with those of `updates`."""
    axis = (int(a["axis"]) if "axis" in a else 0) % a["data"].dim()
    at = a["indices"].to(torch.int64)
    _check_indices(at, a["data"].shape[axis])
    return _scattered(a["data"], axis, at.reshape(-1, *[1] * (a["data"].dim() - axis - 1)), a["updates"], a)


def scatter_along_axis(a: Parameters) -> Tensor:
    """data with elements along `axis` at the places that `indices` names combined with those of `updates`."""
    axis = (int(a["axis"]) if "axis" in a else 0) % a["data"].dim()
    at = a["indices"].to(torch.int64)
    _check_indices(at, a["data"].shape[axis])
    return _scattered(a["data"], axis, at, a["updates"], a)


def scatter_nd(a: Parameters) -> Tensor:
    """data with slices at index vectors along its first axes combined with those of `updates`."""
    x, vectors = a["data"], a["indices"].to(torch.int64)
    count = vectors.shape[-1]
    inside, rest = x.shape[:count], x.shape[count:]
    for axis, part in enumerate(vectors.unbind(-1)):
        _check_indices(part, inside[axis])
    places = sum((part * math.prod(inside[i + 1 :]) for i, part in enumerate(vectors.unbind(-1))), torch.tensor(0))
    flat, updates = x.reshape(-1, *rest), a["updates"].reshape(-1, *rest)
    return _scattered(flat, 0, places.reshape(-1, *[1] * len(rest)), updates, a).reshape(x.shape)


def _scattered(x: Tensor, axis: int, at: Tensor, updates: Tensor, a: Parameters) -> Tensor:
    """`updates` put into x at `at` along `axis`, by the `mode` of MIL's scatters (which add where none is named)."""
    mode, at = str(a.get("mode", "add")), at.expand(updates.shape)
    if mode == "update":
        return x.scatter(axis, at, updates)
    if mode not in SCATTERS:
        raise EdgeqError(f"scatter with mode {mode} is not interpreted")
    name, prepared = SCATTERS[mode]
    return x.scatter_reduce(axis, at, prepared(updates), name)


SCATTERS: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]] = {  # mode → torch's reduction, of what
    "add": ("sum", lambda u: u),
    "sub": ("sum", torch.neg),
    "mul": ("prod", lambda u: u),
    "max": ("amax", lambda u: u),
    "min": ("amin", lambda u: u),
}


def _check_indices(at: Tensor, size: int) -> None:
    if at.numel() and (int(at.min()) < 0 or int(at.max()) >= size):
        raise EdgeqError(f"an index lies outside 0..{size - 1}: check the tokens or tables given as inputs")


def topk(a: Parameters) -> tuple[Tensor, ...]:
    """The k largest (or smallest) along `axis`, sorted, equal values in order of place."""
    x, axis = data(a), int(a["axis"]) if "axis" in a else -1
    k = int(a["k"]) if "k" in a else 1
    values, at = torch.sort(x, dim=axis, descending=not flag(a, "ascending"), stable=True)
    k = x.shape[axis] if k == -1 else k
    values, at = values.narrow(axis, 0, k), at.narrow(axis, 0, k).to(torch.int32)
    return (values,) if "return_indices" in a and not a["return_indices"] else (values, at)


def cumsum(a: Parameters) -> Tensor:
    """Running sum along `axis`; exclusive starts at 0, reverse runs from the end."""
    x, axis = data(a), int(a["axis"]) if "axis" in a else 0
    x = x.flip(axis) if flag(a, "reverse") else x
    total = x.cumsum(axis, dtype=x.dtype)
    total = total - x if flag(a, "exclusive") else total
    return total.flip(axis) if flag(a, "reverse") else total


def band_part(a: Parameters) -> Tensor:
    """Zeros outside `lower` diagonals below and `upper` above the main one; negative keeps them all."""
    x, lower, upper = data(a), int(a.get("lower", -1)), int(a.get("upper", -1))
    row = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])
    keep = ((row <= lower) if lower >= 0 else True) & ((-row <= upper) if upper >= 0 else torch.ones_like(row).bool())
    return torch.where(keep, x, torch.zeros_like(x))


def one_hot(a: Parameters) -> Tensor:
    """A new axis that is on_value at each index and off_value elsewhere."""
    at, size = a["indices"], int(a["one_hot_vector_size"])
    axis = int(a.get("axis", -1))
    on, off = a.get("on_value", torch.tensor(1)), a.get("off_value", torch.tensor(0))
    hot = at.unsqueeze(-1) == torch.arange(size)
    return torch.where(hot, on, off).movedim(-1, axis)


# ---------------------------------------------------------------- resizing


def upsample_nearest(a: Parameters) -> Tensor:
    """Each pixel repeated: the source index is floor(target index / factor)."""
    x = data(a)
    for axis, name in ((-2, "scale_factor_height"), (-1, "scale_factor_width")):
        factor = scalar(a, name, 1.0)
        size = math.floor(x.shape[axis] * factor)
        x = x.index_select(axis, (torch.arange(size) / factor).floor().long().clamp(max=x.shape[axis] - 1))
    return x


def resize_nearest(a: Parameters) -> Tensor:
    """To a size: the source index is floor(target index · in / out)."""
    x = data(a)
    for axis, name in ((-2, "target_size_height"), (-1, "target_size_width")):
        size = int(a[name])
        x = x.index_select(axis, torch.arange(size) * x.shape[axis] // size)
    return x


def grid(mode: str, size: int, target: int) -> Tensor:
    """Where each target pixel lies in the source, by MIL's sampling mode; double."""
    i = torch.arange(target, dtype=torch.float64)
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if target == 1:
            return torch.tensor([0.0 if mode.startswith("STRICT") else (size - 1) / 2], dtype=torch.float64)
        places = i * ((size - 1) / (target - 1))
    elif mode == "DEFAULT":
        places = i * (size / target)  # (in - in/out) / (out - 1)
    elif mode == "OFFSET_CORNERS":
        places = (i + 0.5) * (max(1, size - 1) / target)
    elif mode == "UNALIGN_CORNERS":
        places = (i + 0.5) * (size / target) - 0.5
    else:
        raise EdgeqError(f"the sampling mode {mode!r} is not interpreted")
    return places.clamp(0, size - 1)


def bilinear(x: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
    """Linear interpolation at `places` of the last two axes."""
    for axis, at in zip((-2, -1), places, strict=True):
        low = at.floor().long()
        high = (low + 1).clamp(max=x.shape[axis] - 1)
        share = (at - low).to(torch.float32).view((-1, 1) if axis == -2 else (-1,))
        x = x.index_select(axis, low) * (1 - share) + x.index_select(axis, high) * share
    return x


def upsample_bilinear(a: Parameters) -> Tensor:
    """By factors; the grid is recomputed from the output size."""
    x = data(a)
    mode = "STRICT_ALIGN_CORNERS" if "align_corners" not in a or a["align_corners"] else "UNALIGN_CORNERS"
    names = ("scale_factor_height", "scale_factor_width")
    sizes = [math.floor(n * scalar(a, name, 1.0)) for n, name in zip(x.shape[-2:], names, strict=True)]
    return bilinear(x, (grid(mode, x.shape[-2], sizes[0]), grid(mode, x.shape[-1], sizes[1])))


def resize_bilinear(a: Parameters) -> Tensor:
    """To a size, by the given sampling mode."""
    x, mode = data(a), a.get("sampling_mode", "DEFAULT")
    sizes = [int(a["target_size_height"]), int(a["target_size_width"])]
    return bilinear(x, (grid(mode, x.shape[-2], sizes[0]), grid(mode, x.shape[-1], sizes[1])))


def resample(a: Parameters) -> Tensor:
    """The image at given coordinates; those that torch's grid_sample has the same meaning for."""
    padding = {"constant": "zeros", "border": "border", "reflection": "reflection"}.get(a["padding_mode"])
    normalised = a["coordinates_mode"] == "normalized_minus_one_to_one"
    if padding is None or not normalised or scalar(a, "padding_value", 0.0) != 0:
        raise EdgeqError("resample is interpreted for coordinates from -1 to 1 and padding by zeros or border")
    return F.grid_sample(a["x"], a["coordinates"], a["sampling_mode"], padding, flag(a, "align_corners"))


# ---------------------------------------------------------------- elementwise


def gelu(a: Parameters) -> Tensor:
    """EXACT with erf, or one of the two approximations."""
    x, mode = data(a), a.get("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def cast(a: Parameters) -> Tensor:
    """To another type; floats lose their fraction on the way to integers."""
    x, target = data(a), DTYPES[a["dtype"]]
    return x.trunc().to(target) if x.is_floating_point() and not target.is_floating_point else x.to(target)


def real_div(a: Parameters) -> Tensor:
    """x / y of floats."""
    x, y = data(a), data(a, "y")
    if not (x.is_floating_point() and y.is_floating_point()):
        raise EdgeqError("real_div of integers is not interpreted: divide floats, or use floor_div")
    return x / y


def prelu(a: Parameters) -> Tensor:
    """Slope alpha of each channel (axis 1) below zero."""
    return torch.where(a["x"] > 0, a["x"], a["x"] * a["alpha"].view(-1, *[1] * (a["x"].dim() - 2)))


def unary(function: Callable[[Tensor], Tensor]) -> Operator:
    """An operator of one tensor `x`."""
    return lambda a: function(a["x"])


def binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """A broadcasting operator of `x` and `y`."""
    return lambda a: function(a["x"], a["y"])


def reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    """A reduction over `axes` (all where left out), axes kept or not."""
    return lambda a: function(a["x"], ints(a.get("axes")) or list(range(a["x"].dim())), flag(a, "keep_dims"))


def arg_reduction(function: Any) -> Operator:
    """The place of an extreme along `axis` (the last by default), as int32."""
    return lambda a: function(a["x"], int(a.get("axis", -1)), flag(a, "keep_dims")).to(torch.int32)


OPERATORS: dict[str, Operator] = {
    "quantize": quantize,
    "dequantize": dequantize,
    "constexpr_affine_dequantize": dequantize,
    "conv": conv,
    "conv_transpose": conv_transpose,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "l2_norm": l2_norm,
    "linear": linear,
    "matmul": matmul,
    "einsum": lambda a: torch.einsum(a["equation"], *a["values"]),
    "softmax": lambda a: torch.softmax(a["x"], int(a.get("axis", -1))),
    # shapes and movement
    "expand_dims": expand_dims,
    "squeeze": squeeze,
    "reshape": reshape,
    "transpose": lambda a: a["x"].permute(ints(a["perm"])),
    "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size,
    "split": split,
    "concat": concat,
    "stack": lambda a: torch.stack(a["values"], int(a["axis"])),
    "pad": pad,
    "crop": lambda a: a["x"][
        ...,
        int(a["crop_height"][0]) : a["x"].shape[-2] - int(a["crop_height"][1]),
        int(a["crop_width"][0]) : a["x"].shape[-1] - int(a["crop_width"][1]),
    ],
    "tile": lambda a: a["x"].repeat(ints(a["reps"])),
    "reverse": lambda a: a["x"].flip(ints(a.get("axes")) or list(range(a["x"].dim()))),
    "gather": gather,
    "gather_along_axis": gather_along_axis,
    "gather_nd": gather_nd,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
    "topk": topk,
    "argsort": lambda a: torch.sort(
        a["x"], dim=int(a.get("axis", -1)), descending=not flag(a, "ascending"), stable=True
    ).indices.to(torch.int32),
    "cumsum": cumsum,
    "band_part": band_part,
    "one_hot": one_hot,
    "fill": lambda a: torch.full(ints(a["shape"]), a["value"].item(), dtype=a["value"].dtype),
    "fill_like": lambda a: torch.full(a["ref_tensor"].shape, a["value"].item(), dtype=a["value"].dtype),
    "range_1d": lambda a: torch.arange(a["start"].item(), a["end"].item(), a["step"].item(), dtype=a["start"].dtype),
    "identity": unary(lambda x: x),
    "pixel_shuffle": lambda a: F.pixel_shuffle(a["x"], int(a["upscale_factor"])),
    "pixel_unshuffle": lambda a: F.pixel_unshuffle(a["x"], int(a["downscale_factor"])),
    "upsample_nearest_neighbor": upsample_nearest,
    "resize_nearest_neighbor": resize_nearest,
    "upsample_bilinear": upsample_bilinear,
    "resize_bilinear": resize_bilinear,
    "resample": resample,
    # activations
    "relu": unary(F.relu),
    "relu6": unary(F.relu6),
    "clip": lambda a: a["x"].clamp(float(a["alpha"]), float(a["beta"])),
    "sigmoid": unary(torch.sigmoid),
    "tanh": unary(torch.tanh),
    "gelu": gelu,
    "silu": unary(F.silu),
    "softplus": unary(lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "softsign": unary(F.softsign),
    "elu": lambda a: F.elu(a["x"], float(a["alpha"])),
    "leaky_relu": lambda a: torch.where(a["x"] >= 0, a["x"], a["x"] * a["alpha"]),
    "prelu": prelu,
    "sigmoid_hard": lambda a: (a["x"] * a["alpha"] + a["beta"]).clamp(0, 1),
    "linear_activation": lambda a: a["x"] * a["alpha"] + a["beta"],
    "scaled_tanh": lambda a: a["alpha"] * torch.tanh(a["x"] * a["beta"]),
    "clamped_relu": lambda a: torch.minimum(torch.where(a["x"] >= 0, a["x"], a["x"] * a["alpha"]), a["beta"]),
    "thresholded_relu": lambda a: torch.where(a["x"] >= a["alpha"], a["x"], torch.zeros_like(a["x"])),
    "threshold": lambda a: torch.maximum(a["x"], a["alpha"]),
    # elementwise
    "cast": cast,
    "abs": unary(torch.abs),
    "acos": unary(torch.acos),
    "asin": unary(torch.asin),
    "atan": unary(torch.atan),
    "ceil": unary(torch.ceil),
    "cos": unary(torch.cos),
    "erf": unary(torch.erf),
    "exp": unary(torch.exp),
    "exp2": unary(torch.exp2),
    "floor": unary(torch.floor),
    "inverse": lambda a: 1 / (a["x"] + scalar(a, "epsilon", 1e-4)),
    "log": lambda a: torch.log(a["x"] + scalar(a, "epsilon", 1e-45)),
    "logical_not": unary(torch.logical_not),
    "round": unary(torch.round),
    "rsqrt": lambda a: torch.rsqrt(a["x"] + scalar(a, "epsilon", 1e-12)),
    "sign": unary(torch.sign),
    "sin": unary(torch.sin),
    "sqrt": unary(torch.sqrt),
    "square": unary(torch.square),
    "add": binary(torch.add),
    "sub": binary(torch.sub),
    "mul": binary(torch.mul),
    "real_div": real_div,
    "floor_div": binary(torch.floor_divide),
    "mod": binary(torch.remainder),
    "pow": binary(torch.pow),
    "maximum": binary(torch.maximum),
    "minimum": binary(torch.minimum),
    "equal": binary(torch.eq),
    "not_equal": binary(torch.ne),
    "greater": binary(torch.gt),
    "greater_equal": binary(torch.ge),
    "less": binary(torch.lt),
    "less_equal": binary(torch.le),
    "logical_and": binary(torch.logical_and),
    "logical_or": binary(torch.logical_or),
    "logical_xor": binary(torch.logical_xor),
    "select": lambda a: torch.where(a["cond"], a["a"], a["b"]),
    # reductions
    "reduce_mean": reduction(torch.mean),
    "reduce_sum": reduction(lambda x, axes, keep: torch.sum(x, axes, keep, dtype=x.dtype)),
    "reduce_max": reduction(torch.amax),
    "reduce_min": reduction(torch.amin),
    "reduce_l1_norm": reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "reduce_l2_norm": reduction(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "reduce_sum_square": reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "reduce_log_sum_exp": reduction(torch.logsumexp),
    "reduce_argmax": arg_reduction(torch.argmax),
    "reduce_argmin": arg_reduction(torch.argmin),
}
