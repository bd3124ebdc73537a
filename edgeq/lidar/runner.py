"""Run a lidar bundle: raw points in, boxes out, with numpy and the runtime alone.

In a bundle:  python -m lidar.runner . golden_points.bin   (float32 rows of x, y, z, intensity)
`--check` compares with golden_boxes.json and fails where a box differs by a millimetre.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import pipeline

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]


class Bundle:
    """A bundle folder, loaded: `detect(points)` gives its boxes."""

    def __init__(self, folder: Path, load: Callable[[Path], Run] | None = None, threads: int = 1) -> None:
        """Read pipeline.json and load each part, by `load` where it is given, else by the bundle's own runtime.

        Raises:
            ValueError: the folder is no bundle, or its runtime cannot run here.
        """
        try:
            self.settings: dict[str, Any] = json.loads((folder / "pipeline.json").read_text())
            opened = load or LOADERS[self.settings["runtime"]](threads)
            self.parts = {part["name"]: opened(folder / part["file"]) for part in self.settings["parts"]}
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{folder}: no whole lidar bundle ({type(error).__name__}: {error}); write it again"
            ) from error

    def heads(self, inputs: Sequence[Array]) -> dict[str, Array]:
        """The network's heads for prepared `inputs`: one part, or pillars, scatter and dense network."""
        if "network" in self.parts:
            answers = self.parts["network"](inputs)
        else:
            pillars, table = inputs
            (rows,) = self.parts["pillars"]([pillars])
            answers = self.parts["dense"]([scatter(rows, table, self.settings["grid"])])
        return dict(zip(self.settings["head"]["outputs"], answers, strict=True))

    def detect(self, points: Array) -> tuple[Array, Array, tuple[str, ...]]:
        """Boxes [K, 7] (centre, size, yaw; metres, radians), scores [K] and K class names of a cloud [N, ≥4].

        What the static limits leave out is reported on stderr.
        """
        prepared = pipeline.prepare(points, self.settings)
        if any(prepared.dropped):
            missing = pipeline.left_out(prepared.dropped, prepared.found)
            print(f"left out, beyond the static limits: {missing}", file=sys.stderr)
        return pipeline.boxes(self.heads(prepared.inputs), self.settings)


def rounded(boxes: Array, scores: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """Boxes as JSON says them, to a thousandth of a millimetre."""
    return [
        {"class": name, "score": round(float(score), 6), "box": [round(float(v), 6) for v in box]}
        for box, score, name in zip(boxes, scores, names, strict=True)
    ]


def alike(found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]], tolerance: float = 1e-3) -> bool:
    """Whether boxes are the same ones, to a millimetre: Core ML turns integers into half-precision floats."""
    return len(found) == len(wanted) and all(
        a["class"] == b["class"]
        and abs(a["score"] - b["score"]) < tolerance
        and np.abs(np.subtract(a["box"], b["box"])).max() < tolerance
        for a, b in zip(found, wanted, strict=True)
    )


def scatter(rows: Array, table: Array, grid: Sequence[int]) -> Array:
    """Rows [P, C] and table [H·W] (cell → row, P where empty) → BEV image [1, C, H, W], zero where empty."""
    bordered = np.concatenate([rows, np.zeros((1, rows.shape[1]), rows.dtype)])
    return np.ascontiguousarray(bordered[table].reshape(*grid, -1).transpose(2, 0, 1)[None])


def _litert(threads: int) -> Callable[[Path], Run]:
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


def _executorch(threads: int) -> Callable[[Path], Run]:
    import torch  # ExecuTorch's Python runtime takes torch's tensors
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(threads)

    def load(path: Path) -> Run:
        module = portable_lib._load_for_executorch(str(path))

        def run(inputs: Sequence[Array]) -> list[Array]:
            return [out.numpy().copy() for out in module.forward([torch.from_numpy(x) for x in inputs])]

        return run

    return load


def _tvm(threads: int) -> Callable[[Path], Run]:
    import os

    os.environ.setdefault("TVM_BIND_THREADS", "0")  # else TVM nails this whole process to one core
    os.environ["TVM_NUM_THREADS"] = str(threads)  # else it counts cores at every loop, and takes half of them at most
    import tvm

    def load(path: Path) -> Run:
        machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
        tvm.get_global_func("runtime.config_threadpool")(1, threads)

        def run(inputs: Sequence[Array]) -> list[Array]:
            results = machine["main"](*(tvm.runtime.tensor(x) for x in inputs))
            return [r.numpy() for r in (results if hasattr(results, "__len__") else [results])]

        return run

    return load


def _coreml(threads: int) -> Callable[[Path], Run]:
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


LOADERS = {"litert": _litert, "executorch": _executorch, "tvm": _tvm, "coreml": _coreml}


def main() -> int:
    """Print the boxes of one cloud as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("points", type=Path, help="float32 rows x, y, z, intensity (as KITTI's velodyne files)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare with golden_boxes.json")
    options = parser.parse_args()
    try:
        raw = np.fromfile(options.points, np.float32)
        if raw.size % 4:
            raise ValueError(f"{options.points}: {raw.size} numbers are no rows of four (x, y, z, intensity)")
        boxes, scores, names = Bundle(options.bundle, threads=options.threads).detect(raw.reshape(-1, 4))
    except (OSError, ValueError, ImportError) as error:
        print(error, file=sys.stderr)
        return 2
    found = rounded(boxes, scores, names)
    for line in found:
        print(json.dumps(line))
    if options.check and not alike(found, json.loads((options.bundle / "golden_boxes.json").read_text())):
        print("these are not the boxes of golden_boxes.json", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
