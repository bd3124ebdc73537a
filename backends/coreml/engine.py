"""An `.mlpackage` as a function of NumPy arrays, by NumPy and Core ML alone: this file goes into bundles as `engine.py`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]


def loader(threads: int) -> Callable[[Path], Run]:
    """What opens an artefact for `threads` threads.

    Raises:
        ImportError: the runtime's package is not there. ValueError: this is no system of Apple's.
    """
    if sys.platform != "darwin":
        raise ValueError("Core ML runs on Apple's systems only: take this bundle to a Mac, or the app to an iPhone")
    import coremltools

    def load(path: Path) -> Run:
        model = coremltools.models.MLModel(str(path))
        described = model.get_spec().description

        def run(inputs: Sequence[Array]) -> list[Array]:
            # Core ML knows no int64
            narrow = [x.astype(np.int32) if x.dtype == np.int64 else x for x in inputs]
            found: Mapping[str, Array] = model.predict(
                {i.name: x for i, x in zip(described.input, narrow, strict=True)}
            )
            return [found[o.name] for o in described.output]

        return run

    return load
