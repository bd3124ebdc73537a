"""Float arithmetic whose last bits do not depend on the number of threads: the same task gives the same bytes anywhere.

torch's kernels part their work by the number of threads, and a kernel's edge adds in another order than its middle. While
`ordered` lasts, products that a thread has done in a millisecond are left to one; larger ones have their rows and outputs
filled up to whole vectors, so that no part has an edge; a sum of everything is taken in pieces of one size. What learns, with
its backward passes, is `parted` among one or two threads instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten

ALONE: Final = 1 << 24  # multiplications that one thread is left with: half a millisecond to one
WIDTH: Final = 16  # rows and outputs of a product come in multiples of it: float32 values of the widest vectors
PIECE: Final = 1 << 12  # values that are added up at once
GRAIN: Final = 1 << 15  # values of which ATen gives no two threads a part (at::internal::GRAIN_SIZE)

CONVOLUTIONS = frozenset(
    (torch.conv1d, torch.conv2d, torch.conv3d, aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
)
TRANSPOSED = frozenset(
    (
        *(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d),
        *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
    )
)
LINEAR = frozenset((F.linear, aten.linear.default))
PRODUCTS = frozenset(
    (
        *(torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm),
        *(aten.matmul.default, aten.mm.default, aten.bmm.default),
    )
)
SUMS = frozenset((torch.sum, Tensor.sum, aten.sum.default, aten.sum.dim_IntList))
MEANS = frozenset((torch.mean, Tensor.mean, aten.mean.default, aten.mean.dim))


@contextlib.contextmanager
def ordered() -> Iterator[None]:
    """While it lasts; also a decorator."""
    with _Ordered():
        yield


@contextlib.contextmanager
def parted(parts: int = 2) -> Iterator[None]:
    """As many threads while it lasts, whatever number the caller has; also a decorator.

    For what `ordered` does not reach, backward passes above all: the bytes depend on how many parts there are, not on how many
    cores compute them. More than two are faster on large detectors alone.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(parts)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Ordered(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in SUMS or func in MEANS:
            known = 1 <= len(args) <= 3 and not given.keys() - {"dim", "axis", "keepdim", "dtype"}
            return _total(func, args, given) if known else func(*args, **given)
        if len(args) < 2:  # by keywords, as no graph writes it
            return func(*args, **given)
        if func in CONVOLUTIONS and args[0].dim() == args[1].dim():
            return _convolution(func, args, given)
        if func in LINEAR:
            return _linear(func, args, given)
        if func in PRODUCTS or (func in TRANSPOSED and args[0].dim() == args[1].dim()):
            return _product(func, args, given)
        return func(*args, **given)


def _convolution(func: Any, args: Sequence[Any], given: dict[str, Any]) -> Any:
    x, weight = args[0], args[1]
    if _multiplications(x, weight) <= ALONE:
        return _alone(func, args, given)
    if weight.shape[1] == 1:  # depthwise: its sums are too short to be parted
        return func(*args, **given)
    groups = given.get("groups", args[6] if len(args) > 6 else 1)
    outputs = weight.shape[0] // groups
    more = -outputs % WIDTH
    pointwise = weight[0, 0].numel() == 1
    if more:
        bias = given.get("bias", args[2] if len(args) > 2 else None)
        kept = {name: value for name, value in given.items() if name != "bias"}
        wide = F.pad(weight.reshape(groups, outputs, -1), (0, 0, 0, more)).reshape(-1, *weight.shape[1:])
        shifted = None if bias is None else F.pad(bias.reshape(groups, outputs), (0, more)).reshape(-1)
        args, given = (x, wide, shifted, *args[3:]), kept
    made = _pointwise(func, args, given) if pointwise else func(*args, **given)
    if not more:
        return made
    apart = made.reshape(made.shape[0], groups, outputs + more, *made.shape[2:])
    return apart[:, :, :outputs].flatten(1, 2)


def _pointwise(func: Any, args: Sequence[Any], given: dict[str, Any]) -> Any:
    """A convolution of single cells as a plain matrix product: oneDNN parts its sums by the number of threads."""
    before = torch._C._get_mkldnn_enabled()  # which a user may have switched off
    torch._C._set_mkldnn_enabled(False)
    try:
        return func(*args, **given)
    finally:
        torch._C._set_mkldnn_enabled(before)


def _linear(func: Any, args: Sequence[Any], given: dict[str, Any]) -> Any:
    x, weight, *rest = args
    bias = given.get("bias", rest[0] if rest else None)
    outputs = weight.shape[0]
    if x.numel() * outputs <= ALONE:
        return _alone(func, args, given)
    more = -outputs % WIDTH
    shifted = F.pad(bias, (0, more)) if more and bias is not None else bias
    wide = F.pad(weight, (0, 0, 0, more)) if more else weight
    return _filled(x, outputs, lambda flat: func(flat, wide, shifted))


def _product(func: Any, args: Sequence[Any], given: dict[str, Any]) -> Any:
    x, other = args[0], args[1]
    count = _multiplications(x, other) if func in TRANSPOSED else x.numel() * other.shape[-1]
    if count <= ALONE:
        return _alone(func, args, given)
    if func in TRANSPOSED:
        return _transposed(func, args, given)
    if other.dim() != 2 or x.dim() < 2:  # torch gives each thread whole products of a stack
        return func(*args, **given)
    outputs = other.shape[1]
    return _filled(x, outputs, lambda flat: func(flat, F.pad(other, (0, -outputs % WIDTH))))


def _transposed(func: Any, args: Sequence[Any], given: dict[str, Any]) -> Any:
    """A large transposed convolution, its outputs filled up to whole vectors in each group."""
    x, weight = args[0], args[1]
    groups = given.get("groups", args[6] if len(args) > 6 else 1)
    outputs = weight.shape[1]
    more = -outputs % WIDTH
    if x.dim() == 5:  # with AVX2 oneDNN parts sums over a volume by the number of threads
        return _alone(func, args, given)
    if not more or outputs == 1:
        return func(*args, **given)
    bias = given.get("bias", args[2] if len(args) > 2 else None)
    shifted = None if bias is None else F.pad(bias.reshape(groups, outputs), (0, more)).reshape(-1)
    wide = F.pad(weight, (0, 0) * (weight.dim() - 2) + (0, more))
    kept = {name: value for name, value in given.items() if name != "bias"}
    made = func(x, wide, shifted, *args[3:], **kept)
    apart = made.reshape(made.shape[0], groups, outputs + more, *made.shape[2:])
    return apart[:, :, :outputs].flatten(1, 2)


def _filled(x: Tensor, outputs: int, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """`multiply` of the rows of `x` [..., C] and of as many zeros as are missing, without what these and others gave."""
    rows = x.numel() // x.shape[-1]
    flat, missing = x.reshape(rows, -1), -rows % WIDTH
    made = multiply(F.pad(flat, (0, 0, 0, missing)) if missing else flat)
    return made[:rows, :outputs].reshape(*x.shape[:-1], outputs)


def _multiplications(x: Tensor, weight: Tensor) -> int:
    """Of a convolution, as if its output had the cells of its input."""
    return weight.numel() * x.numel() // max(x.shape[1], 1)


def _alone(func: Callable[..., Any], args: Sequence[Any], given: dict[str, Any]) -> Any:
    threads = torch.get_num_threads()
    if threads == 1:
        return func(*args, **given)
    torch.set_num_threads(1)
    try:
        return func(*args, **given)
    finally:
        torch.set_num_threads(threads)


def _total(func: Any, args: Sequence[Any], given: dict[str, Any]) -> Tensor:
    """A sum or mean; in pieces where one number comes of many, whose parts ATen else gives to threads."""
    made: Tensor
    x = args[0]
    dims = given.get("dim", given.get("axis", args[1] if len(args) > 1 else None))
    every = range(x.dim())
    gone = (
        every
        if dims is None or dims == []
        else [d % x.dim() for d in (dims if isinstance(dims, (list, tuple)) else [dims])]
    )
    if x.numel() <= GRAIN or not x.is_floating_point() or any(x.shape[d] != 1 for d in every if d not in gone):
        made = func(*args, **given)
        return made
    made = _in_pieces(x.reshape(-1) if given.get("dtype") is None else x.reshape(-1).to(given["dtype"]))
    if func in MEANS:
        made = made / x.numel()
    keep = given.get("keepdim", args[2] if len(args) > 2 else False)
    return made.reshape([1 for d in every if keep or d not in gone])


def _in_pieces(x: Tensor) -> Tensor:
    """The sum of `x` [N]."""
    while len(x) > PIECE:
        whole = len(x) // PIECE * PIECE
        x = torch.cat([x[:whole].view(-1, PIECE).sum(1), x[whole:].sum().reshape(1)])
    return x.sum()
