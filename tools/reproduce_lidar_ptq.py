"""The ablation of LiDAR-PTQ (Zhou et al. 2024, arXiv 2401.15865, table 5) on three detectors, with paired intervals.

    tools/reproduce_lidar_ptq.py pointpillars --precision w8a8 --precision w4a8
    tools/reproduce_lidar_ptq.py centerpoint_pillar --frames 500

Every step is scored by the QDQ program's boxes: AP|R40 in BEV at IoU 0.7, the difference from float with its 95 %
paired bootstrap interval over frames, agreement (AP with float's boxes as ground truth), and the change of overlap: IoU of
each labelled object with the box that covers it best, in hundredths, which has no threshold.
Quantized programs and boxes are kept in --cache, so an interrupted run goes on where it was. PointPillars needs EDGEQ_DATA.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import DATA, ROOT, digest, machine, table
from numpy.typing import NDArray

from edgeq import api
from edgeq.calib.recipes import RECIPES
from edgeq.calib.steps.correct import Correct
from edgeq.calib.steps.ends import Ends
from edgeq.calib.steps.equalise import Equalise
from edgeq.calib.written import changed
from edgeq.graph.package import QuantizedModel, load
from edgeq.lidar import kitti
from edgeq.lidar.average_precision import (
    FrameMatches,
    average_precision,
    bootstrap,
    bootstrap_difference,
    match,
    of_class,
    roles,
)
from edgeq.lidar.boxes import iou_bev
from edgeq.lidar.detectors import Detector
from edgeq.lidar.evaluate import LEAST_POINTS, agreement, matches, within
from edgeq.lidar.frame import Detections, Frame
from edgeq.lidar.scenes import HDL64_FRONT, scene
from edgeq.lidar.tally import Tally
from edgeq.spec import Recipe
from edgeq.task import load_task

PRECISIONS = ("w8a8", "w4a8", "w8a4", "w6a6")
SAVE_EVERY_S = 20.0
Predict = Callable[..., Any]


def steps() -> dict[str, Recipe]:
    """The rows of the ablation: calibrators a 2D toolbox offers, then LiDAR-PTQ part by part.

    First and last layers have eight bits in every row (the paper leaves them in full precision). The paper adds the
    task-guided loss before the rounding; here it comes last, so that each row is a recipe by itself. Equalisation and bias
    correction are ours.
    """
    whole, plain, searched = RECIPES["lidar-ptq"], RECIPES["minmax"], RECIPES["lidar-minmax"]
    rows = {
        "entropy": RECIPES["entropy"],
        "entropy, zeros left out": RECIPES["entropy-nonzero"],
        "percentile 99.9": changed(plain, ("ranges.method=percentile:99.9",)),
        "percentile 99.99": changed(plain, ("ranges.method=percentile:99.99",)),
        "max-min": plain,
        "+ grid search": dataclasses.replace(
            searched, steps=tuple(s for s in searched.steps if not isinstance(s, (Equalise, Correct)))
        ),
        "+ equalisation, bias correction": searched,
        "+ adaptive rounding": changed(whole, ("reconstruct.objectives=mse",)),
        "+ TGPL": whole,
    }
    return {
        name: dataclasses.replace(recipe, steps=(Ends(), *(s for s in recipe.steps if not isinstance(s, Ends))))
        for name, recipe in rows.items()
    }


# ---------------------------------------------------------------- detectors and frames


def bench(name: str, frames: int) -> tuple[Detector, dict[str, list[Frame]], str]:
    """A detector, its evaluation sets by name, and the class that is scored."""
    sys.path.insert(0, str(ROOT / "examples"))
    if name == "pointpillars":
        import pointpillars_kitti

        sets = {
            "kitti/eval": list(kitti.read_frames(DATA / "kitti" / "eval")),
            "drive 0005": kitti.read_drive(DATA / "kitti_drive_0005"),
        }
        return pointpillars_kitti.DETECTOR, sets, "Car"
    from edgeq.lidar.detectors import DETECTORS

    return DETECTORS[name], {"synthetic": [scene(i, HDL64_FRONT) for i in range(frames)]}, "Vehicle"


TASKS = {
    n: ROOT / "examples" / f"{f}.py"
    for n, f in (
        ("pointpillars", "pointpillars_kitti"),
        ("centerpoint_pillar", "centerpoint_pillar"),
        ("centerpoint_voxel", "centerpoint_voxel"),
    )
}


def detected(predict: Predict, detector: Detector, frames: Sequence[Frame], cache: Path) -> list[Detections]:
    """Boxes in every frame; those found in `cache` are not computed again."""
    found = stored(cache) if cache.is_file() else []
    tally = Tally()
    saved = time.monotonic()
    for i in range(len(found), len(frames)):
        found.append(detector.detect(frames[i].points, predict, tally=tally))
        if i == len(frames) - 1 or time.monotonic() - saved > SAVE_EVERY_S:
            store(found, cache)
            saved = time.monotonic()
            print(f"  {cache.stem}: {i + 1}/{len(frames)}", file=sys.stderr, flush=True)
    if tally.frames:
        print(f"  {cache.stem}: {tally}", file=sys.stderr, flush=True)
    return found[: len(frames)]


def store(found: Sequence[Detections], cache: Path) -> None:
    """Write boxes of all frames to an .npz file, whole or not at all."""
    part = cache.with_suffix(".part.npz")
    np.savez(
        part,
        counts=[len(f.classes) for f in found],
        boxes=np.concatenate([f.boxes for f in found]),
        scores=np.concatenate([f.scores for f in found]),
        classes=np.array([c for f in found for c in f.classes], str),
    )
    part.replace(cache)


def stored(cache: Path) -> list[Detections]:
    """What `store` wrote."""
    with np.load(cache) as arrays:
        ends = np.cumsum(arrays["counts"])[:-1]
        parts = zip(*(np.split(arrays[k], ends) for k in ("boxes", "scores", "classes")), strict=True)
        return [Detections(boxes, scores, tuple(map(str, classes))) for boxes, scores, classes in parts]


def scored(
    found: Sequence[Detections], frames: Sequence[Frame], detector: Detector, name: str, iou: float
) -> list[FrameMatches]:
    """Matches of a set: KITTI counts every labelled car, synthetic scenes the vehicles in range with five points."""
    if name == "Vehicle":
        return matches(found, frames, name, detector.pipeline["encoder"]["point_range"], iou)
    return match(found, [f.labels for f in frames if f.labels], name, iou=iou)


def overlaps(found: Sequence[Detections], frames: Sequence[Frame], detector: Detector, name: str) -> list[NDArray[Any]]:
    """Of each frame's objects that count, the BEV IoU with the box of their class that covers them best; 0 where none does."""
    result = []
    for boxes, frame in zip(found, frames, strict=True):
        truth, least = frame.labels, 0
        assert truth is not None, "frames of this table have labels"
        if name == "Vehicle":
            truth, least = within(truth, detector.pipeline["encoder"]["point_range"]), LEAST_POINTS
        counted, _ = roles(truth, name, None, least)
        result.append(iou_bev(truth.boxes[counted], boxes.boxes[of_class(boxes, name)]).max(axis=1, initial=0.0))
    return result


def overlap_change(mine: Sequence[NDArray[Any]], real: Sequence[NDArray[Any]]) -> str:
    """Mean change of overlap in hundredths, with its 95 % paired bootstrap interval over frames."""
    count = np.array([len(r) for r in real])
    change = np.array([100 * (m - r).sum() for m, r in zip(mine, real, strict=True)])
    draws = np.random.default_rng(0).multinomial(len(count), np.full(len(count), 1 / len(count)), 1000)
    low, high = np.percentile(draws @ change / np.maximum(draws @ count, 1), [2.5, 97.5])
    return f"{change.sum() / count.sum():+.2f} [{low:+.2f}, {high:+.2f}]"


def quantized(name: str, step: str, recipe: Recipe, precision: str, cache: Path) -> QuantizedModel:
    """The program of one row, from the cache if it is there."""
    folder = cache / f"{name}-{precision}-{step.replace(' ', '_').replace(',', '')}"
    if folder.is_dir():
        return load(folder)
    started = time.monotonic()
    target = "portable" if precision == "w8a8" else "simulated"
    model = api.quantize(TASKS[name], recipe=recipe, precision=precision, target=target, output=folder)
    print(f"  {folder.name}: quantized in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return model


def rows(options: argparse.Namespace) -> Iterable[list[str]]:
    """The table's rows, float first."""
    detector, sets, kind = bench(options.detector, options.frames)
    network = load_task(TASKS[options.detector]).model()
    floats = {
        s: detected(
            network, detector, frames, options.cache / f"{options.detector}-{kind}-{s.replace('/', '-')}-float.npz"
        )
        for s, frames in sets.items()
    }
    base = {s: scored(floats[s], frames, detector, kind, options.iou) for s, frames in sets.items()}
    covered = {s: overlaps(floats[s], frames, detector, kind) for s, frames in sets.items()}
    for s in sets:
        yield ["float", "", s, f"{100 * average_precision(base[s]):.1f}", "", "", "", ""]
    for precision in options.precision or PRECISIONS:
        plain: dict[str, list[FrameMatches]] = {}  # max-min's
        for step, recipe in steps().items():
            if options.step and step not in options.step:
                continue
            model = quantized(options.detector, step, recipe, precision, options.cache)
            for s, frames in sets.items():
                stem = f"{options.detector}-{precision}-{digest(model)}-{s.replace('/', '-')}"
                found = detected(lambda *x, m=model: m.qdq(x), detector, frames, options.cache / f"{stem}.npz")  # type: ignore[misc] # binds the loop's value
                mine = scored(found, frames, detector, kind, options.iou)
                change, low, high = (100 * v for v in bootstrap_difference(mine, base[s]))
                if step == "max-min":
                    plain[s] = mine
                yield [
                    step,
                    precision,
                    s,
                    f"{100 * average_precision(mine):.1f}",
                    f"{change:+.1f} [{low:+.1f}, {high:+.1f}]",
                    recovered(base[s], plain[s], mine) if step.startswith("+") and s in plain else "",
                    f"{agreement(found, floats[s], kind, options.iou):.3f}",
                    overlap_change(overlaps(found, frames, detector, kind), covered[s]),
                ]


def recovered(real: Sequence[FrameMatches], plain: Sequence[FrameMatches], mine: Sequence[FrameMatches]) -> str:
    """How much of what max-min loses `mine` has back, in percent; empty where that loss may be next to nothing."""
    if bootstrap_difference(plain, real)[2] > -0.002:
        return ""
    share = bootstrap((real, plain, mine), lambda a, b, c: (c - b) / (a - b) if a > b else float("nan"))
    return "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * v for v in share))


def main() -> None:
    """Parse the command line, measure, print as it goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", choices=sorted(TASKS))
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="these alone; repeat for several")
    parser.add_argument("--step", action="append", help="these rows alone, as the table names them")
    parser.add_argument("--frames", type=int, default=500, help="synthetic scenes to evaluate")
    parser.add_argument("--iou", type=float, default=0.7, help="the overlap that a true detection must exceed")
    parser.add_argument("--calibration", type=int, default=64, help="frames to calibrate on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "lidar_ptq")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["EDGEQ_FRAMES"] = str(options.calibration)
    options.cache.mkdir(parents=True, exist_ok=True)
    made = []
    for row in rows(options):
        made.append(row)
        print("  ".join(row), file=sys.stderr, flush=True)
    print(table(("step", "precision", "frames", "AP", "difference", "recovered %", "agreement", "overlap"), made))
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
