"""Parameters of MIL operators by their names, as torch has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

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
