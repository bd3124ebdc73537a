"""One self-contained HTML page about a lidar detector: its boxes from above, int8 over float, and what was lost."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.lidar.average_precision import IOU
from edgeq.lidar.boxes import corners_bev, iou_bev
from edgeq.lidar.evaluate import SURE
from edgeq.lidar.frame import Detections, Labels
from edgeq.pages import template, words

Found = Mapping[str, Any]
Pair = Mapping[str, Any]
MOST_POINTS = 45_000  # drawn of a frame: 6 bytes each and a third more for base64 make 360 kB
FINEST = 0.05  # metres: cell of which only the highest point is drawn; it grows until a frame fits
FARTHEST = 300.0  # metres along each axis; int16 centimetres end at 327
ALIKE = 0.5  # overlap that makes two boxes one answer where AP has none for the class
LEAST_VIEW = 20.0  # metres: half the side of the smallest square that is shown at first
MARGIN = 4.0  # metres around the outermost box


@dataclass(frozen=True, slots=True)
class Picture:
    """One frame and what the two networks found in it.

    source: where the frame is from, in words. points: float32 [N, 4]. truth: labels in the detector's range, None where
    there are none. ignored, dropped: points out of range, and pillars or sites there was no room for.
    """

    name: str
    source: str
    points: NDArray[np.float32]
    truth: Labels | None
    floating: Detections
    int8: Detections
    ignored: int
    dropped: int


def write_bev(found: Found, pictures: Sequence[Picture], path: Path) -> Path:
    """Write the page about `found`, the object of `edgeq lidar demo --json`, to `path`, whole or not at all.

    The pictures are shown in the order given, those of one source together. Returns `path`.

    Raises:
        EdgeqError: jinja2 is not installed.
    """
    return template.write("bev.html", contents(found, pictures), path)


def contents(found: Found, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Everything the template shows, as plain data."""
    frames = [_frame(picture) for picture in pictures]
    counts = [_counts(frame["pairs"]) for frame in frames]
    latency = words.medians(found["backends"])["backends"]
    ap = found["ap"]
    return {
        **{k: found[k] for k in ("network", "device", "versions", "frames", "ap", "agreement", "backends")},
        "headline": _headline(ap),
        "verdicts": _verdicts(found, counts),
        "lost": {k: words.points(ap[k], ap["float"]) for k in ("minmax", "lidar_ptq")},
        "speeds": {name: words.speed(row) for name, row in latency.items()},
        "pictures": [
            {"name": p.name, "source": p.source, "points": len(p.points), "ignored": p.ignored, "dropped": p.dropped, **c}
            for p, c in zip(pictures, counts, strict=True)
        ],
        "sure": SURE,
        "data": template.embedded({"sure": SURE, "frames": frames}),
    }  # fmt: skip


def paired(floating: Detections, int8: Detections) -> list[tuple[int | None, int | None]]:
    """Rows of float's and of int8's boxes that are the same answer; None on one side where a box has no counterpart.

    The same answer is what AP would count as one: the same class, and a BEV overlap above the class's limit. Float's boxes
    choose in the order of their scores, each the greatest overlap that is left.
    """
    overlap = iou_bev(floating.boxes, int8.boxes)
    left = np.ones(len(int8.classes), np.bool_)
    pairs: list[tuple[int | None, int | None]] = []
    for row in np.argsort(-floating.scores, kind="stable").tolist():
        name = floating.classes[row]
        alike = left & (overlap[row] > IOU.get(name, ALIKE)) & np.array([c == name for c in int8.classes], np.bool_)
        best = int(np.where(alike, overlap[row], -1).argmax()) if alike.any() else None
        if best is not None:
            left[best] = False
        pairs.append((row, best))
    return pairs + [(None, row) for row in np.flatnonzero(left).tolist()]


def _counts(pairs: Sequence[Pair]) -> dict[str, int]:
    """Answers of which one score at least is SURE: given by both, by float alone, by int8 alone."""
    shown = [p for p in pairs if max(box[5] for box in (p["float"], p["int8"]) if box) >= SURE]
    missed, new = (sum(p[k] is None for p in shown) for k in ("int8", "float"))
    return {"matched": len(shown) - missed - new, "missed": missed, "new": new}


def _frame(picture: Picture) -> dict[str, Any]:
    """What the script draws: metres, radians, base64 of int16 centimetres x, y, z."""
    drawn = _thinned(picture.points)
    floating, int8, truth = picture.floating, picture.int8, picture.truth
    pairs = [
        {
            "class": floating.classes[a] if a is not None else int8.classes[b],  # type: ignore[index] # one of two is there
            "float": None if a is None else _rectangle(floating.boxes[a], floating.scores[a]),
            "int8": None if b is None else _rectangle(int8.boxes[b], int8.scores[b]),
        }
        for a, b in paired(floating, int8)
    ]
    objects = [] if truth is None else zip(truth.classes, truth.boxes, truth.num_points, strict=True)
    return {
        "name": picture.name,
        "source": picture.source,
        "view": _view([floating.boxes, int8.boxes, *([] if truth is None else [truth.boxes])]),
        "ground": round(float(np.percentile(drawn[:, 2], 10)), 2) if len(drawn) else 0.0,
        "points": base64.b64encode(np.rint(drawn[:, :3] * 100).astype("<i2").tobytes()).decode(),
        "pairs": pairs,
        "truth": [{"class": name, "box": _rectangle(box, count)} for name, box, count in objects],
    }


def _rectangle(box: NDArray[Any], value: Any) -> list[float]:
    """x, y, l, w, yaw of a box and a score or count."""
    x, y, _, length, width, _, yaw = box.tolist()
    return [*(round(v, 2) for v in (x, y, length, width)), round(yaw, 3), round(float(value), 3)]


def _view(boxes: Sequence[NDArray[Any]]) -> list[float]:
    """x and y of the middle and half the side of the square that holds the sensor and all boxes."""
    corners = np.concatenate([np.zeros((1, 2)), *(corners_bev(b).reshape(-1, 2) for b in boxes)])
    low, high = corners.min(0), corners.max(0)
    half = max(float((high - low).max()) / 2 + MARGIN, LEAST_VIEW)
    return [round(float(v), 2) for v in (*(low + high) / 2, half)]


def _thinned(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """At most MOST_POINTS of the points, the highest of each cell: what is seen from above."""
    points = points[np.all(np.abs(points[:, :3]) < FARTHEST, axis=1)]  # NaN, a driver's "no return", is not less
    points = points[np.argsort(-points[:, 2], kind="stable")]
    cell, kept = FINEST, np.arange(len(points))
    while len(kept) > MOST_POINTS:
        column, row = np.floor(points[:, :2].astype(np.float64).T / cell).astype(np.int64)
        _, kept = np.unique(column * 2**32 + row, return_index=True)
        cell *= 1.25
    return points[np.sort(kept)]


def _headline(ap: Found) -> str:
    lost = words.points(ap["lidar_ptq"], ap["float"])
    if lost is None:
        return "What int8 does to the boxes"
    return f"Int8 loses {-lost:.1f} points of vehicle AP" if lost < 0 else "Int8 loses no vehicle AP"


def _verdicts(found: Found, counts: Sequence[Mapping[str, int]]) -> list[tuple[str, str]]:
    """(mark, sentence), what is wrong first."""
    latency = words.medians(found["backends"])
    shown = [("warn", sentence) for sentence in words.slower(latency)]
    shown += _recovered(found["ap"])
    if counts:
        matched, missed, new = (sum(c[k] for c in counts) for k in ("matched", "missed", "new"))
        where = "the frame" if len(counts) == 1 else f"the {len(counts)} frames"
        shown.append((
            "info",
            f"In {where} below int8 finds {matched} of float's {matched + missed} boxes again, {missed} it misses; "
            f"{new} of its own {'is' if new == 1 else 'are'} new.",
        ))  # fmt: skip
    shown += words.parity(found["backends"])
    shown += [("good", sentence) for sentence in words.faster(latency)]
    return sorted(shown, key=lambda verdict: verdict[0] != "warn")


def _recovered(ap: Found) -> list[tuple[str, str]]:
    """What lidar-ptq makes of what minmax loses."""
    minmax, ours = (words.points(ap[k], ap["float"]) for k in ("minmax", "lidar_ptq"))
    if minmax is None or ours is None:
        return []
    if ours < minmax:
        return [("warn", f"lidar-ptq does worse than minmax here, by {minmax - ours:.1f} points of vehicle AP.")]
    if minmax >= 0:
        return [("info", "minmax loses no vehicle AP here, so there was nothing to win back.")]
    back = f"{min(ours, 0) - minmax:.1f} of the {-minmax:.1f}"
    return [("good", f"lidar-ptq wins back {back} points of vehicle AP that minmax loses.")]
