"""The compiled step, native/optim.cpp, by ctypes. Where it was not built, `load` gives None and torch does the work."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.optim.maps import Map, blocks, dynamic_map
from edgeq.optim.update import KINDS, Kind, Numbers
from edgeq.spec import EdgeqError

NAMES = ("plain", "avx2", "avx512", "vbmi")  # in the order of native/optim.cpp
VERSION = 3  # of what a step computes and of its arguments, as in native/optim.cpp
CHOICE = "EDGEQ_OPTIM"  # environment variable: one of NAMES or torch; otherwise the last that the processor can run


BINS = 1 << 15  # of ratios, by their 16 highest bits without the sign, or 15 with it: one threshold in each at most


class _Map(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_float * 256),
        ("magnitudes", ctypes.c_float * 256),
        ("thresholds", ctypes.c_float * 256),
        ("bins", ctypes.c_uint32 * BINS),
        ("is_signed", ctypes.c_int32),
    )


class _Parameter(ctypes.Structure):
    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("first_max", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("second_max", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        *((name, ctypes.c_float) for name in Numbers.__dataclass_fields__ if name != "plain"),
        ("plain", ctypes.c_int32),
    )


class Native:
    """The library with one of its paths."""

    def __init__(self, library: ctypes.CDLL, path: str) -> None:
        self.library, self.path, self._name = library, path, NAMES.index(path)
        self.largest_block = int(library.edgeq_optim_largest_block())
        self._maps = {signed: _map(dynamic_map(signed)) for signed in (True, False)}

    def unsound(self, parameters: Any, count: int) -> int:
        """Number of the first parameter whose gradient is infinite, NaN or too large to square; -1 where there is none."""
        return int(self.library.edgeq_optim_unsound(self._name, parameters, count, torch.get_num_threads()))

    def step(self, kind: Kind, parameters: Any, counts: Sequence[int], size: int) -> None:
        """One step of all `parameters`, of `counts` values each, in place."""
        first = [0]
        for count in counts:
            first.append(first[-1] + blocks(count, size))
        starts = (ctypes.c_int64 * len(first))(*first)
        self.library.edgeq_optim_step(
            self._name, KINDS.index(kind), parameters, starts, len(counts), size,
            ctypes.byref(self._maps[True]), ctypes.byref(self._maps[False]), torch.get_num_threads(),
        )  # fmt: skip

    def encode(self, x: Tensor, signed: bool, size: int) -> tuple[Tensor, Tensor]:
        """See edgeq.optim.maps.encode."""
        x = x.contiguous()
        codes = torch.empty(x.shape, dtype=torch.uint8)
        maxima = torch.empty(blocks(x.numel(), size))
        self.library.edgeq_optim_encode(
            self._name,
            _at(x),
            ctypes.c_int64(x.numel()),
            size,
            ctypes.byref(self._maps[signed]),
            _at(codes),
            _at(maxima),
        )
        return codes, maxima

    def decode(self, codes: Tensor, maxima: Tensor, signed: bool, size: int) -> Tensor:
        """See edgeq.optim.maps.decode."""
        out = torch.empty(codes.shape)
        self.library.edgeq_optim_decode(
            self._name,
            _at(codes),
            _at(maxima),
            ctypes.c_int64(codes.numel()),
            size,
            ctypes.byref(self._maps[signed]),
            _at(out),
        )
        return out


def parameter_array(count: int) -> Any:
    """Room for `count` parameters, to be filled by `fill`."""
    return (_Parameter * count)()


def fill(
    at: Any,
    weight: Tensor,
    gradient: Tensor,
    first: Sequence[Tensor] | None,
    second: Sequence[Tensor] | None,
    numbers: Numbers,
) -> None:
    """Describe one parameter; states are (codes, largest magnitudes). The tensors must outlive the step."""
    at.weight, at.gradient, at.count = weight.data_ptr(), gradient.data_ptr(), weight.numel()
    at.first, at.first_max = (first[0].data_ptr(), first[1].data_ptr()) if first else (None, None)
    at.second, at.second_max = (second[0].data_ptr(), second[1].data_ptr()) if second else (None, None)
    for name in Numbers.__dataclass_fields__:
        setattr(at, name, getattr(numbers, name))


def load() -> Native | None:
    """The library with the fastest path of this processor, or the one that EDGEQ_OPTIM names; None: torch does the work.

    Raises:
        EdgeqError: EDGEQ_OPTIM names no path, or one that this processor or this installation does not have.
    """
    chosen = os.environ.get(CHOICE, "")
    if chosen not in ("", "torch", *NAMES):
        raise EdgeqError(f"{CHOICE}={chosen}: choose torch, {', '.join(NAMES)}, or leave it out")
    if chosen == "torch":
        return None
    there = paths()
    if chosen and chosen not in there:
        raise EdgeqError(f"{CHOICE}={chosen}: there is only torch{''.join(f', {name}' for name in there)} here")
    return _native(chosen or there[-1]) if there else None


@functools.cache
def paths() -> tuple[str, ...]:
    """Names of the compiled paths that can run here, the fastest last; none where the kernel was not built."""
    library = _library()
    return () if library is None else tuple(name for i, name in enumerate(NAMES) if library.edgeq_optim_can(i))


@functools.cache
def _native(path: str) -> Native:
    library = _library()
    assert library is not None
    return Native(library, path)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library beside this file. It leaves OpenMP to torch's, so that both share one set of threads."""
    for file in sorted(Path(__file__).parent.glob("_native*.so")):
        for helper in (None, "libgomp.so.1"):
            try:
                if helper:  # where torch brings no OpenMP that others can see
                    ctypes.CDLL(helper, mode=ctypes.RTLD_GLOBAL)
                library = ctypes.CDLL(str(file))
            except OSError:
                continue
            if is_current(library):
                return library
    return None


def is_current(library: ctypes.CDLL) -> bool:
    """Whether it is this version's kernel: one that an earlier installation left behind would compute something else."""
    return hasattr(library, "edgeq_optim_version") and library.edgeq_optim_version() == VERSION


def _map(which: Map) -> _Map:
    made = _Map()
    for name in ("values", "magnitudes", "thresholds"):
        numbers = getattr(which, name).tolist()
        if name == "thresholds":  # nothing is above the last magnitude
            numbers += [float("inf")] * (256 - len(numbers))
        getattr(made, name)[: len(numbers)] = numbers
    made.bins[:] = _bins(which).tolist()
    made.is_signed = which.zero != 0
    return made


def _bins(which: Map) -> NDArray[np.int64]:
    """For every bin of ratios the number that finds their codes, see `Map` in native/optim.cpp.

    Added to the bits of a ratio below the bin's, it has the code above them. Where the sign's bit is set, it is the code's
    complement, so that it grows with the bits there too.
    """
    low = 17 if which.zero else 16
    thresholds = which.thresholds.numpy().view(np.int32).astype(np.int64)
    bins = np.arange(BINS)
    negative = (bins << low) >> 31 == 1
    least, top = (bins << low) & 0x7FFFFFFF, np.where(negative, which.zero, len(thresholds))  # -1 is no value
    index = np.searchsorted(thresholds, least).clip(max=top)  # of the bin's least magnitude
    within = np.searchsorted(thresholds, least + (1 << low) - 1).clip(max=top) > index
    border = np.where(within, thresholds[index.clip(max=len(thresholds) - 1)] - least, (1 << low) - 1)
    codes = np.where(negative, 255 - (which.zero - index), which.zero + index)
    found: NDArray[np.int64] = (codes << low) + (1 << low) - 1 - border
    return found


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
