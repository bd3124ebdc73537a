"""Run a lidar bundle: raw points in, boxes out, with numpy and the runtime alone.

In a bundle:  python -m lidar.runner . golden_points.bin   (float32 rows of x, y, z, intensity; or .npy [N, 4 or more])
`--check` compares with golden_boxes.json and fails where a box differs by a millimetre.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import pipeline

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]

COLUMNS = 4  # of a cloud: x, y, z, intensity


class Bundle:
    """A bundle folder, loaded: `detect(points)` gives its boxes."""

    def __init__(self, folder: Path, load: Callable[[Path], Run] | None = None, threads: int = 1) -> None:
        """Read pipeline.json and load each part, by `load` where it is given, else by `engine.py` beside this file in a bundle.

        Raises:
            ValueError: the folder is no bundle, a part of it is damaged, or its runtime cannot run here.
        """
        try:
            self.settings: dict[str, Any] = json.loads((folder / "pipeline.json").read_text())
            runtime, parts = self.settings["runtime"], self.settings["parts"]
            files = {part["name"]: folder / part["file"] for part in parts}
            known = {part["name"]: (part["file"], part["sha256"]) for part in parts}
            if not isinstance(runtime, str):
                raise TypeError("its runtime has no name")
            for name in pipeline.NEEDED:
                pipeline.part(self.settings, name)
            if "network" not in files and (
                not {"pillars", "dense"} <= set(files) or pipeline.misfit(self.settings["grid"], (int, int))
            ):
                raise ValueError("it has neither a network nor pillars, grid and dense")
        except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{folder}: no whole lidar bundle ({type(error).__name__}: {error}); write it again"
            ) from error
        for name, (
            file,
            wanted,
        ) in known.items():  # before a runtime, which a damaged library could take along, sees them
            path = files[name]
            if file != path.name or path.is_symlink():
                raise ValueError(
                    f"{folder}: pipeline.json names {file!r}, which is no file in it; write the bundle again"
                )
            if not path.exists() or digest(path) != wanted:
                raise ValueError(f"{path}: missing, not whole or changed; write the bundle again")
        if load is None and importlib.util.find_spec(f"{__package__}.engine") is None:
            raise ValueError(
                f"{folder}: this runner lies in no bundle; run the bundle's own there, or give it what loads a part"
            )
        try:
            opened = load or importlib.import_module(f"{__package__}.engine").loader(threads)
        except ImportError as error:
            raise ValueError(f"{runtime} cannot run here ({error}): install its Python package") from error
        self.parts = {name: opened(path) for name, path in files.items()}

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

        A cloud without a usable point has no boxes. What the static limits leave out is reported on stderr.
        """
        return self.boxes(pipeline.prepare(points, self.settings))

    def boxes(self, prepared: pipeline.Prepared) -> tuple[Array, Array, tuple[str, ...]]:
        """What `detect` gives, of a prepared cloud."""
        if any(prepared.dropped):
            missing = pipeline.left_out(prepared.dropped, prepared.found)
            print(f"left out, beyond the static limits: {missing}", file=sys.stderr)
        if prepared.ignored == prepared.points:
            return np.zeros((0, 7)), np.zeros(0), ()
        return pipeline.boxes(self.heads(prepared.inputs), self.settings)


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a package's files with their names."""
    if path.is_dir():
        lines = [f"{p.relative_to(path).as_posix()}\0{digest(p)}\n" for p in sorted(path.rglob("*")) if p.is_file()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_points(path: Path, columns: int | None = None) -> Array:
    """A cloud [N, columns] from float32 rows (four columns where not given), or [N, ≥4] from a .npy file.

    Raises:
        ValueError: the file is no such array, or has fewer columns than x, y, z, intensity. OSError: it cannot be read.
    """
    if columns is not None and columns < COLUMNS:
        raise ValueError(f"{path}: the pipeline needs four columns (x, y, z, intensity), not {columns}")
    if path.suffix == ".npy":
        try:
            points = np.asarray(np.load(path, allow_pickle=False))
        except (ValueError, EOFError) as error:
            raise ValueError(f"{path}: no whole .npy array ({error}); write it again with numpy.save") from error
        if points.ndim != 2 or points.shape[1] < COLUMNS or points.dtype.kind not in "fiu":
            raise ValueError(
                f"{path}: {points.dtype} {list(points.shape)}, but the pipeline needs numbers [N, 4 or more] (x, y, z, "
                "intensity)"
            )
        if columns not in (None, points.shape[1]):
            raise ValueError(f"{path}: {points.shape[1]} columns, not {columns}")
        return points.astype(np.float32)
    width, size = columns or COLUMNS, path.stat().st_size
    if size % (4 * width):
        raise ValueError(
            f"{path}: {size} bytes are no float32 rows of {width} numbers (x, y, z, intensity first); say how many a row "
            "has with --columns"
        )
    return np.fromfile(path, np.float32).reshape(-1, width)


def usable(prepared: pipeline.Prepared, columns: int) -> str:
    """How many points count, in words, and what may be wrong where few do."""
    points, ignored = prepared.points, prepared.ignored
    said = f"{points} points, {ignored} ignored (out of range, NaN or Inf)"
    if not points:
        return "the cloud is empty, so there are no boxes"
    if ignored == points:
        return f"{said}: none is left, so there are no boxes; is the file float32 with {columns} columns, in metres?"
    if 2 * ignored > points:
        return f"{said}: if the sweep reaches no further than point_range, is the file float32 with {columns} columns?"
    return said


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


def golden(folder: Path) -> list[dict[str, Any]]:
    """The boxes that the bundle's golden frame must give.

    Raises:
        ValueError: they are not there.
    """
    path = folder / "golden_boxes.json"
    try:
        boxes: list[dict[str, Any]] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: missing or not whole ({type(error).__name__}); write the bundle again") from error
    return boxes


def scatter(rows: Array, table: Array, grid: Sequence[int]) -> Array:
    """Rows [P, C] and table [H·W] (cell → row, P where empty) → BEV image [1, C, H, W], zero where empty."""
    bordered = np.concatenate([rows, np.zeros((1, rows.shape[1]), rows.dtype)])
    return np.ascontiguousarray(bordered[table].reshape(*grid, -1).transpose(2, 0, 1)[None])


def main() -> int:
    """Print the boxes of one cloud as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument(
        "points", type=Path, help="float32 rows x, y, z, intensity (as KITTI's velodyne files), or .npy [N, 4 or more]"
    )
    parser.add_argument("--columns", type=int, help="numbers in a row of the points file; those behind 4 are not read")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare with golden_boxes.json")
    options = parser.parse_args()
    try:
        points = read_points(options.points, options.columns)
        wanted = golden(options.bundle) if options.check else []
        bundle = Bundle(options.bundle, threads=options.threads)
        prepared = pipeline.prepare(points, bundle.settings)
        print(usable(prepared, points.shape[1]), file=sys.stderr)
        found = rounded(*bundle.boxes(prepared))
    except (OSError, ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    for line in found:
        print(json.dumps(line))
    if options.check and not alike(found, wanted):
        print("these are not the boxes of golden_boxes.json", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
