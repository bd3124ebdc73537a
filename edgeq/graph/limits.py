"""Shape checks that a target's table refers to by name: why a kernel cannot take this very operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import Node

from edgeq.graph.ops import conv_attrs, node_arg, value


def xnnpack_mean(node: Node) -> str | None:
    """XNNPACK averages int8 over height and width of a 4-D tensor alone."""
    if node.target is torch.ops.aten.adaptive_avg_pool2d.default and value(node.args[0]).dim() == 4:
        return None
    rank, axes = value(node.args[0]).dim(), node_arg(node, 1, None)
    if rank == 4 and axes is not None and sorted(a % 4 for a in axes) == [2, 3] and not node.kwargs.get("dtype"):
        return None
    return "XNNPACK averages int8 only over the height and width of a 4-D tensor"


def xnnpack_average(node: Node) -> str | None:
    """An average pool is a depthwise convolution of ones where every window has the same divisor."""
    padded = any(_pair(node_arg(node, 3, 0)))
    if node_arg(node, 4, False) or (padded and not node_arg(node, 5, True)) or node_arg(node, 6, None) is not None:
        return "its windows are divided by different counts (ceil_mode, padding left out, or divisor_override)"
    return None if value(node.args[0]).dim() == 4 else "it pools a tensor that is not 4-D"


def xnnpack_max_pool(node: Node) -> str | None:
    """XNNPACK's max pool wants a window larger than one element that no element falls between."""
    kernel = _pair(node.args[1])
    stride = _pair(node_arg(node, 2, None) or node.args[1])
    if kernel == (1, 1) or any(s > k for s, k in zip(stride, kernel, strict=True)):
        return "its window is one element or smaller than its stride"
    return None if value(node.args[0]).dim() == 4 else "it pools a tensor that is not 4-D"


def xnnpack_slice(node: Node) -> str | None:
    """XNNPACK slices contiguous ranges."""
    return None if node_arg(node, 4, 1) == 1 else "it slices with a step"


def one_group(node: Node) -> str | None:
    """Weights of a transposed convolution lie [C_in, C_out/groups, ...]: groups would share scales, and biases their grid."""
    groups = conv_attrs(node, "conv_transpose2d").groups
    return None if groups == 1 else f"the {groups} groups of a transposed convolution would share their weights' scales"


def xnnpack_upsample(node: Node) -> str | None:
    """Nearest upsampling by whole factors is copying; anything else XNNPACK does not have."""
    before, after = value(node.args[0]).shape, value(node).shape
    whole = len(before) == 4 and all(a % b == 0 for a, b in zip(after[2:], before[2:], strict=True))
    return None if whole else "it enlarges by a factor that is not whole"


def litert_transposed(node: Node) -> str | None:
    """TRANSPOSE_CONV knows neither groups nor dilation."""
    attrs = conv_attrs(node, "conv_transpose2d")
    plain = attrs.groups == 1 and all(d == 1 for d in attrs.dilation)
    return None if plain else "LiteRT's transposed convolution has neither groups nor dilation"


def litert_average(node: Node) -> str | None:
    """AVERAGE_POOL_2D divides by the elements that it reads: padding left out is its SAME padding or none."""
    kernel, stride = _pair(node.args[1]), _pair(node_arg(node, 2, None) or node.args[1])
    pads, before, after = _pair(node_arg(node, 3, 0)), value(node.args[0]).shape[-2:], value(node).shape[-2:]
    axes = list(zip(before, after, kernel, stride, pads, strict=True))
    if node_arg(node, 6, None) is not None or any((o - 1) * s + k > i + 2 * p for i, o, k, s, p in axes):
        return "LiteRT's average pool has neither ceil_mode nor divisor_override"
    same = all(o == -(-i // s) and max((o - 1) * s + k - i, 0) // 2 == p for i, o, k, s, p in axes)
    if any(pads) and not node_arg(node, 5, True) and not same:
        return "LiteRT's average pool leaves only padding SAME out of its counts"
    return None


def litert_max_pool(node: Node) -> str | None:
    """MAX_POOL_2D takes 4-D tensors and no dilation."""
    plain = value(node.args[0]).dim() == 4 and _pair(node_arg(node, 4, 1)) == (1, 1)
    return None if plain else "LiteRT's max pool takes 4-D tensors and no dilation"


def litert_slice(node: Node) -> str | None:
    """STRIDED_SLICE takes up to five axes."""
    return None if value(node.args[0]).dim() <= 5 else "LiteRT slices at most 5 axes"


def litert_pad(node: Node) -> str | None:
    """PAD only adds."""
    amounts = node.args[1]
    grows = isinstance(amounts, (list, tuple)) and all(isinstance(a, int) and a >= 0 for a in amounts)
    return None if grows else "it pads by a negative amount, which LiteRT does not"


def _pair(raw: object) -> tuple[int, int]:
    items = [int(i) for i in raw] if isinstance(raw, (list, tuple)) else [int(raw)]  # type: ignore[call-overload] # an int
    return items[0], items[-1]


LIMITS: dict[str, Callable[[Node], str | None]] = {
    "litert_average": litert_average,
    "litert_max_pool": litert_max_pool,
    "litert_pad": litert_pad,
    "litert_slice": litert_slice,
    "litert_transposed": litert_transposed,
    "one_group": one_group,
    "xnnpack_mean": xnnpack_mean,
    "xnnpack_average": xnnpack_average,
    "xnnpack_max_pool": xnnpack_max_pool,
    "xnnpack_slice": xnnpack_slice,
    "xnnpack_upsample": xnnpack_upsample,
}
