"""The constants of a compiled library: those that Relax's executable in it carries, found by the mark before each."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from edgeq.backends.constants import Array, Stored

MAGIC = struct.pack("<Q", 0xDD5E40F096B4A13F)  # kTVMNDArrayMagic, before every saved array
HEAD = struct.Struct("<8xiiiBBH")  # reserved; device type and id, axes, type code, bits, lanes
TYPES = {(0, 8): np.int8, (2, 32): np.float32}


def stored(path: Path) -> Stored:
    """Weights and multipliers; scales of activations stand in the code."""
    data = path.read_bytes()
    weights: list[Array] = []
    ratios: list[Array] = []
    at = data.find(MAGIC)
    while at >= 0:
        *_, axes, code, bits, lanes = HEAD.unpack_from(data, at + 8)
        begin = at + 8 + HEAD.size + 8 * axes
        (size,) = struct.unpack_from("<q", data, begin)
        kind = TYPES.get((code, bits)) if lanes == 1 else None
        if kind is not None and 0 < size <= len(data) - begin - 8:
            values = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, begin + 8)
            (weights if kind is np.int8 else ratios).append(values)
        at = data.find(MAGIC, at + 8)
    return Stored(tuple(weights), tuple(ratios), folded=True)
