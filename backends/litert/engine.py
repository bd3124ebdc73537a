"""A `.tflite` as a function of NumPy arrays, by NumPy and LiteRT alone: this file goes into bundles as `engine.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]


def loader(threads: int) -> Callable[[Path], Run]:
    """What opens an artefact for `threads` threads.

    Raises:
        ImportError: the runtime's package is not there.
    """
    from ai_edge_litert.interpreter import Interpreter

    def load(path: Path) -> Run:
        engine = Interpreter(str(path), num_threads=threads)
        engine.allocate_tensors()

        def run(inputs: Sequence[Array]) -> list[Array]:
            for detail, value in zip(engine.get_input_details(), inputs, strict=True):
                engine.set_tensor(detail["index"], value.astype(detail["dtype"], copy=False))
            engine.invoke()
            return [engine.get_tensor(detail["index"]) for detail in engine.get_output_details()]

        return run

    return load
