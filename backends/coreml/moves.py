"""MIL operators that move values and change shapes, in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeq.backends.coreml.parameters import Parameters, data, flag, ints, scalar
from edgeq.backends.coreml.windows import torch_pad
from edgeq.spec import EdgeqError


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
