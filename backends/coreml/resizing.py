"""MIL operators that resize images, in torch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeq.backends.coreml.parameters import Parameters, data, flag, scalar
from edgeq.spec import EdgeqError


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
