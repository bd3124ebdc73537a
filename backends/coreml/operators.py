"""What each MIL operator computes, in torch: written from the operator descriptions in coremltools' documentation.

Shares nothing with the converter. An operator takes its parameters by their MIL names and returns its result, or a
tuple of results. Floats arrive as float32 whatever the program declares; the interpreter rounds what comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeq.backends.coreml.moves import (
    band_part,
    concat,
    cumsum,
    expand_dims,
    gather,
    gather_along_axis,
    gather_nd,
    one_hot,
    pad,
    reshape,
    scatter,
    scatter_along_axis,
    scatter_nd,
    slice_by_index,
    slice_by_size,
    split,
    squeeze,
    topk,
)
from edgeq.backends.coreml.parameters import DTYPES, Operator, Parameters, data, flag, ints, scalar
from edgeq.backends.coreml.resizing import (
    resample,
    resize_bilinear,
    resize_nearest,
    upsample_bilinear,
    upsample_nearest,
)
from edgeq.backends.coreml.windows import avg_pool, conv, conv_transpose, max_pool
from edgeq.spec import EdgeqError

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
    "sinh": unary(torch.sinh),
    "sqrt": unary(torch.sqrt),
    "tan": unary(torch.tan),
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
