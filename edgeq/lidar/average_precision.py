"""Average precision of 3D detectors: KITTI's 40 recall positions and nuScenes' centre distance, with paired intervals.

Matching a frame and averaging are two steps: `match` or `match_centres` turns each frame's detections of one class into
`FrameMatches`; `average_precision`, `average_precision_nuscenes` and `bootstrap_difference` only add those up.

KITTI's rules, as its devkit's evaluate_object.cpp has them:
- Ground truth counts when it is of the class and within the difficulty's limits. Harder objects and those of a
  neighbouring class (Van for Car, Person_sitting for Pedestrian) are ignored: missing one costs nothing, and a detection
  on one is neither true nor false. Other classes do not exist: a detection on a cyclist is a false car.
- A detection lower in the image than the difficulty's limit is ignored too: never false, and a true one is not counted.
- For a given score threshold the objects choose in the order of the file: each takes, from the detections not taken yet
  whose overlap is above the limit, the one of greatest overlap, an ignored one only where there is no other. A second
  detection of one object is false.
- The thresholds are scores of true detections, chosen so that recall rises in steps of 1/40; for these, an object's
  detection is the one of best score. The precision at a step is the greatest at this or a later one, 0 where recall never
  gets; AP is the mean over the steps without the first, recall 0 (Simonelli et al. 2019, "AP|R40").
- "DontCare" regions have no place in BEV and 3D (see edgeq.lidar.kitti).
Where fewer than 41 objects count, the devkit runs out of thresholds before recall 1, even for a perfect detector; here
each step then has the threshold that reaches its recall, so that AP is what the paper defines. Detections of other classes
are never looked at; the devkit lets those of ignored height take an object away from a detection of its own class.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeq.lidar.boxes import iou_3d, iou_bev
from edgeq.lidar.frame import Detections, Labels

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Objects not higher than `bbox_height` pixels, or more occluded or truncated than this, are ignored."""

    bbox_height: int
    occlusion: int
    truncation: float


DIFFICULTIES = {
    "easy": Difficulty(40, 0, 0.15),
    "moderate": Difficulty(25, 1, 0.30),
    "hard": Difficulty(25, 2, 0.50),
}
IOU = {"Car": 0.7, "Vehicle": 0.7, "Pedestrian": 0.5, "Cyclist": 0.5}
COUNTED = {"Vehicle": ("Car", "Van")}  # a detector's class that covers several of the labels'
NEIGHBOURS = {"Car": ("Van",), "Pedestrian": ("Person_sitting",)}
STEPS = 40
RECALLS = [0.0, *itertools.accumulate([1 / STEPS] * STEPS)]  # as the devkit adds them up
NUSCENES_DISTANCES = (0.5, 1.0, 2.0, 4.0)  # metres; nuScenes' AP is the mean over these
NUSCENES_MINIMUM = 0.1  # recall and precision up to here give nothing


@dataclass(frozen=True, slots=True)
class FrameMatches:
    """What one frame adds to a precision-recall curve.

    objects: ground truth that counts.
    scores: [K], the distinct scores of the frame's detections, falling.
    true, false: [K], true and false detections when only those with at least that score are looked at.
    found: scores of the true detections that KITTI's thresholds are chosen from.
    """

    objects: int
    scores: Floats
    true: Integers
    false: Integers
    found: Floats


def match(
    detections: Sequence[Detections],
    labels: Sequence[Labels],
    name: str,
    metric: Literal["bev", "3d"] = "bev",
    iou: float | None = None,
    difficulty: str | None = None,
    min_points: int = 0,
    heights: Sequence[Floats] | None = None,
) -> list[FrameMatches]:
    """Match the detections of class `name` to ground truth by overlap, frame by frame, by KITTI's rules (see above).

    iou: the overlap to exceed; KITTI's for the class (`IOU`) when not given.
    difficulty: "easy", "moderate" or "hard"; without one every object of the class counts and neighbours are ignored.
    min_points: objects with fewer lidar points are ignored.
    heights: of every frame's detections in the image, in pixels (edgeq.lidar.kitti.project); without, none is too low.

    Raises:
        ValueError: not as many frames of detections as of labels; a class without an agreed overlap and no `iou`.
    """
    if len(detections) != len(labels) or (heights is not None and len(heights) != len(labels)):
        raise ValueError(f"detections of {len(detections)} frames cannot be matched to labels of {len(labels)}")
    if iou is None and name not in IOU:
        raise ValueError(f"no overlap is agreed for class {name!r}: give iou, or one of {', '.join(IOU)}")
    limit = DIFFICULTIES[difficulty] if difficulty else None
    overlap_of = iou_bev if metric == "bev" else iou_3d
    result = []
    for i, (found, truth) in enumerate(zip(detections, labels, strict=True)):
        mine = of_class(found, name)
        counted, ignored = roles(truth, name, limit, min_points)
        objects = np.flatnonzero(counted | ignored)
        overlap = overlap_of(truth.boxes[objects], found.boxes[mine])
        low = np.zeros(len(mine), np.bool_)
        if limit and heights is not None:
            low = heights[i][mine].astype(np.int64) < limit.bbox_height  # the devkit drops the fraction
        wanted = IOU[name] if iou is None else iou
        result.append(_match_frame(overlap, found.scores[mine].astype(np.float64), counted[objects], low, wanted))
    return result


def match_centres(
    detections: Sequence[Detections],
    labels: Sequence[Labels],
    name: str,
    distance: float,
    min_points: int = 0,
) -> list[FrameMatches]:
    """Match the detections of class `name` to ground truth by the distance of centres on the ground, as nuScenes does.

    Best score first, each detection takes the nearest object of its class that is not taken yet, if nearer than `distance`
    metres; else it is false (Caesar et al. 2020, section 3.1). Neighbouring classes and objects of fewer than `min_points`
    points are ignored as in `match`.
    """
    result = []
    for found, truth in zip(detections, labels, strict=True):
        mine = of_class(found, name)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        counted, ignored = roles(truth, name, None, min_points)
        objects = np.flatnonzero(counted | ignored)
        gap = np.linalg.norm(found.boxes[mine, None, :2] - truth.boxes[objects, :2], axis=2)
        true, false = np.zeros(len(mine), np.int64), np.zeros(len(mine), np.int64)
        for row in range(len(mine)):
            nearest = int(gap[row].argmin()) if len(objects) else -1
            if nearest < 0 or gap[row, nearest] >= distance:
                false[row] = 1
            else:
                true[row] = counted[objects[nearest]]
                gap[:, nearest] = np.inf
        scores = found.scores[mine].astype(np.float64)
        last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of each run of equal scores
        found_scores = scores[true > 0]
        result.append(
            FrameMatches(int(counted.sum()), scores[last], true.cumsum()[last], false.cumsum()[last], found_scores)
        )
    return result


def average_precision(matches: Sequence[FrameMatches]) -> float:
    """AP|R40 of one class, 0..1; NaN where no object counts."""
    return _r40(_pool(matches), np.ones(len(matches), np.int64))


def average_precision_nuscenes(matches: Sequence[FrameMatches]) -> float:
    """nuScenes' AP of one class at one distance, 0..1; NaN where no object counts.

    The mean over recall above 10 % of what precision exceeds 10 % by, over 90 % (Caesar et al. 2020, section 3.1).
    """
    return _nuscenes(_pool(matches), np.ones(len(matches), np.int64))


def bootstrap(
    matches: Sequence[Sequence[FrameMatches]],
    statistic: Callable[..., float],
    resamples: int = 1000,
    seed: int = 0,
    metric: Literal["r40", "nuscenes"] = "r40",
) -> tuple[float, float, float]:
    """`statistic` of the APs of several detectors on the same frames, and its 95 % interval: (value, low, high).

    Paired percentile bootstrap (Efron and Tibshirani 1993, chapter 13): every resample draws frames with replacement, the
    same for all. Neighbouring frames of one drive are alike, so on a drive the interval is too narrow.

    Raises:
        ValueError: the detectors are not matched to the same frames.
    """
    if any([m.objects for m in others] != [m.objects for m in matches[0]] for others in matches):
        raise ValueError("a paired difference needs all detectors matched to the same objects of the same frames")
    pools = [_pool(m) for m in matches]
    measure = _r40 if metric == "r40" else _nuscenes
    frames = len(matches[0])
    draws = np.random.default_rng(seed).multinomial(frames, np.full(frames, 1 / frames), resamples)
    found = np.array([statistic(*(measure(p, weights) for p in pools)) for weights in draws])
    low, high = np.nanpercentile(found, [2.5, 97.5])  # a resample without objects says nothing
    whole = np.ones(frames, np.int64)
    return statistic(*(measure(p, whole) for p in pools)), float(low), float(high)


def bootstrap_difference(
    matches_a: Sequence[FrameMatches],
    matches_b: Sequence[FrameMatches],
    resamples: int = 1000,
    seed: int = 0,
    metric: Literal["r40", "nuscenes"] = "r40",
) -> tuple[float, float, float]:
    """AP of a less AP of b on the same frames, and its 95 % interval: see `bootstrap`."""
    return bootstrap((matches_a, matches_b), lambda a, b: a - b, resamples, seed, metric)


# ---------------------------------------------------------------- matching


def of_class(found: Detections, name: str) -> NDArray[np.intp]:
    """Which detections [K] are of class `name`."""
    return np.flatnonzero(np.array([c == name for c in found.classes], np.bool_))


def roles(truth: Labels, name: str, limit: Difficulty | None, min_points: int) -> tuple[Booleans, Booleans]:
    """Which objects [M] count, and which are ignored; all others do not exist."""
    of_class = np.array([c in COUNTED.get(name, (name,)) for c in truth.classes], np.bool_)
    neighbour = np.array([c in NEIGHBOURS.get(name, ()) for c in truth.classes], np.bool_)
    hard = (truth.num_points >= 0) & (truth.num_points < min_points)
    if limit:
        hard |= (truth.bbox_height <= limit.bbox_height) | (truth.occlusion > limit.occlusion)
        hard |= truth.truncation > limit.truncation
    return of_class & ~hard, neighbour | (of_class & hard)


def _match_frame(overlap: Floats, scores: Floats, counted: Booleans, low: Booleans, iou: float) -> FrameMatches:
    """KITTI's matching of one frame at every score at once.

    overlap: [M, K] of objects and detections; scores: [K]; counted: [M], the other objects are ignored; low: [K], too low
    in the image.
    """
    candidate = overlap > iou
    taken = np.zeros(len(scores), np.bool_)
    found = []
    for near, counts in zip(candidate, counted, strict=True):
        near = near & ~taken
        if near.any():
            best = int(np.where(near, scores, -np.inf).argmax())
            taken[best] = True
            if counts and not low[best]:
                found.append(scores[best])

    thresholds = np.unique(scores)[::-1]
    free = scores >= thresholds[:, None]  # [thresholds, K]
    true = np.zeros(len(thresholds), np.int64)
    rank = np.where(candidate, np.where(low, 0.0, overlap), -1.0)  # a low detection is anyone's last choice
    for row, counts in zip(rank, counted, strict=True):
        choice = np.where(free, row, -1.0)
        best_at = choice.argmax(1) if len(scores) else np.zeros(0, np.intp)
        hit = np.flatnonzero(choice[np.arange(len(thresholds)), best_at] >= 0)
        free[hit, best_at[hit]] = False
        true[hit] += counts & ~low[best_at[hit]]
    return FrameMatches(int(counted.sum()), thresholds, true, (free & ~low).sum(1, dtype=np.int64), np.array(found))


# ---------------------------------------------------------------- averaging


@dataclass(frozen=True, slots=True)
class _Pool:
    """The frames' curves as events in order of falling score, so that frames can be weighted (drawn several times).

    objects: [F]. scores, frames, true, false: [E], at which score in which frame how many more are true and false.
    found, found_frames: [T], scores of true detections, falling.
    """

    objects: Integers
    scores: Floats
    frames: Integers
    true: Integers
    false: Integers
    found: Floats
    found_frames: Integers


def _pool(matches: Sequence[FrameMatches]) -> _Pool:
    def joined(parts: list[NDArray[Any]], dtype: type[Any]) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)

    numbers = np.arange(len(matches))
    scores = joined([m.scores for m in matches], np.float64)
    found = joined([m.found for m in matches], np.float64)
    order, found_order = np.argsort(-scores, kind="stable"), np.argsort(-found, kind="stable")
    return _Pool(
        objects=np.array([m.objects for m in matches], np.int64),
        scores=scores[order],
        frames=np.repeat(numbers, [len(m.scores) for m in matches])[order],
        true=joined([np.diff(m.true, prepend=0) for m in matches], np.int64)[order],
        false=joined([np.diff(m.false, prepend=0) for m in matches], np.int64)[order],
        found=found[found_order],
        found_frames=np.repeat(numbers, [len(m.found) for m in matches])[found_order],
    )


def _counts(pool: _Pool, weights: Integers) -> tuple[Integers, Integers]:
    """True detections and all detections [E] when everything down to each event is looked at."""
    times = weights[pool.frames]
    true = (pool.true * times).cumsum()
    return true, true + (pool.false * times).cumsum()


def _r40(pool: _Pool, weights: Integers) -> float:
    objects = int(pool.objects @ weights)
    if not objects:
        return float("nan")
    found = np.repeat(pool.found, weights[pool.found_frames])
    chosen = _recall_steps(len(found), objects)
    true, detected = _counts(pool, weights)
    last = np.searchsorted(-pool.scores, -found[chosen], side="right") - 1  # event down to the threshold
    sampled = np.zeros(STEPS + 1)
    sampled[: len(chosen)] = true[last] / np.maximum(detected[last], 1)
    return float(np.maximum.accumulate(sampled[::-1])[::-1][1:].mean())


def _recall_steps(found: int, objects: int) -> list[int]:
    """Which of `found` true detections, best first, give the thresholds of the steps k = 0..40, as far as they get.

    The devkit (getThresholds) passes over place i while recall (i + 2) / objects is nearer to k / 40 than (i + 1) / objects,
    so a step's place is the first i with 2 i + 3 ≥ 2 k objects / 40 that is still free, or the last place there is. Where both
    are equally near, its doubles decide: k / 40 is a sum of fortieths there. With few objects a step's place is the first whose
    recall (i + 1) / objects reaches k / 40.
    """
    if objects <= STEPS:
        steps = [max(-(-k * objects // STEPS) - 1, 0) for k in range(STEPS + 1)]
        return [place for place in steps if place < found]
    places: list[int] = []
    while len(places) <= STEPS and (places[-1] if places else -1) < found - 1:
        recall = RECALLS[len(places)]
        nearest = -((3 * STEPS - 2 * len(places) * objects) // (2 * STEPS))  # but for a tie, which may go either way
        place = max(nearest - 1, places[-1] + 1 if places else 0)
        while place < found - 1 and (place + 2) / objects - recall < recall - (place + 1) / objects:
            place += 1
        places.append(min(place, found - 1))
    return places


def _nuscenes(pool: _Pool, weights: Integers) -> float:
    objects = int(pool.objects @ weights)
    if not objects:
        return float("nan")
    true, detected = _counts(pool, weights)
    last = np.diff(pool.scores, append=-np.inf) != 0  # of each run of equal scores
    true, detected = true[last & (detected > 0)], detected[last & (detected > 0)]
    if not len(detected):
        return 0.0
    sampled = np.interp(np.linspace(0, 1, 101), true / objects, true / detected, right=0)
    counted = sampled[round(100 * NUSCENES_MINIMUM) + 1 :]
    return float(np.maximum(counted - NUSCENES_MINIMUM, 0).mean() / (1 - NUSCENES_MINIMUM))
