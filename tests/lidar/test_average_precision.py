"""Average precision: cases worked out by hand, KITTI's rules against a plain loop of them, and the interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.lidar.average_precision import (
    FrameMatches,
    average_precision,
    average_precision_nuscenes,
    bootstrap_difference,
    match,
    match_centres,
)
from edgeq.lidar.boxes import iou_bev
from edgeq.lidar.frame import Detections, Labels, labels


def cars(*where: float) -> Labels:
    """One car of 4 × 2 m at each x."""
    return objects(*(("Car", x) for x in where))


def objects(*which: tuple[str, float]) -> Labels:
    return labels(np.array([[x, 0, 0, 4, 2, 1.5, 0] for _, x in which]).reshape(-1, 7), tuple(c for c, _ in which))


def seen(*which: tuple[float, float], name: str = "Car") -> Detections:
    """A car of 4 × 2 m at each (x, score); 0.5 m off is an overlap of 0.78, 1 m one of 0.6."""
    boxes = np.array([[x, 0, 0, 4, 2, 1.5, 0] for x, _ in which]).reshape(-1, 7)
    return Detections(boxes, np.array([s for _, s in which]), (name,) * len(which))


def ap(found: Detections, truth: Labels, name: str = "Car", iou: float = 0.7) -> float:
    return average_precision(match([found], [truth], name, iou=iou))


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        pytest.param(seen((0, 0.9), (20, 0.8)), 1.0, id="both"),
        pytest.param(seen((0, 0.9)), 0.5, id="one of two"),
        pytest.param(seen(), 0.0, id="none"),
        pytest.param(seen((0, 0.9), (20, 0.8), (40, 0.7)), 1.0, id="a false one below all true ones"),
        pytest.param(seen((0, 0.9), (40, 0.8), (20, 0.7)), (1 + 2 / 3) / 2, id="a false one between"),
        pytest.param(
            seen((40, 0.95), (0, 0.9), (20, 0.8)), 2 / 3, id="a false one first; precision only falls, never rises"
        ),
        pytest.param(seen((40, 0.9), (0, 0.9), (20, 0.8)), 2 / 3, id="a false one as sure as a true one"),
        pytest.param(seen((0, 0.9), (0.1, 0.8), (20, 0.7)), (1 + 2 / 3) / 2, id="the same car twice"),
        pytest.param(seen((1, 0.9), (20, 0.8)), 0.25, id="one off by a quarter of its length"),
    ],
)
def test_two_cars(found: Detections, wanted: float) -> None:
    assert ap(found, cars(0, 20)) == pytest.approx(wanted)


def test_where_nothing_is_to_be_found_there_is_no_precision() -> None:
    assert np.isnan(ap(seen((0, 0.9)), cars()))
    assert np.isnan(average_precision_nuscenes(match_centres([seen((0, 0.9))], [cars()], "Car", 1)))
    assert np.isnan(average_precision([]))


def test_frames_add_up() -> None:
    truth = [cars(0), cars(), cars(0, 20)]
    found = [seen((0, 0.6)), seen((7, 0.7)), seen((20, 0.9), (0, 0.8))]
    # 0.9, 0.8 true, 0.7 false, 0.6 true: two thirds of the recall at precision 1, the rest at 3/4; 26 of 40 steps
    assert average_precision(match(found, truth, "Car")) == pytest.approx((26 + 14 * 3 / 4) / 40)


def test_neighbours_take_detections_and_other_classes_do_not() -> None:
    found = seen((40, 0.95), (0, 0.9))
    assert ap(found, objects(("Car", 0), ("Van", 40))) == 1
    assert ap(found, objects(("Car", 0), ("Cyclist", 40))) == 0.5
    assert ap(found, objects(("Car", 0), ("DontCare", 40))) == 0.5
    assert ap(seen((0, 0.9)), objects(("Car", 0), ("Van", 40))) == 1, "a van missed costs nothing"
    people = seen((40, 0.95), (0, 0.9), name="Pedestrian")
    assert ap(people, objects(("Pedestrian", 0), ("Person_sitting", 40)), "Pedestrian") == 1
    vehicles = seen((40, 0.95), (0, 0.9), name="Vehicle")
    assert ap(vehicles, objects(("Car", 0), ("Van", 40)), "Vehicle") == 1
    assert ap(seen((0, 0.9), name="Vehicle"), objects(("Car", 0), ("Van", 40)), "Vehicle") == 0.5, "here a van counts"


def test_detections_of_other_classes_are_not_looked_at() -> None:
    both = Detections(np.repeat(seen((0, 1)).boxes, 2, 0), np.array([0.9, 0.8]), ("Cyclist", "Car"))
    assert ap(both, cars(0)) == 1


def test_difficulty_ignores_what_is_harder() -> None:
    truth = Labels(
        boxes=cars(0, 20, 40, 60, 80).boxes,
        classes=("Car",) * 5,
        num_points=np.full(5, -1),
        occlusion=np.array([0, 0, 1, 2, 3]),
        truncation=np.array([0, 0.2, 0, 0, 0]),
        bbox_height=np.array([41, 100, 100, 26, 100]),
    )
    counts = {d: match([seen()], [truth], "Car", difficulty=d)[0].objects for d in ("easy", "moderate", "hard", None)}
    assert counts == {"easy": 1, "moderate": 3, "hard": 4, None: 5}
    found = seen((20, 0.95), (40, 0.92), (60, 0.91), (0, 0.9))
    assert average_precision(match([found], [truth], "Car", difficulty="easy")) == 1, "harder ones found are not false"


def test_a_detection_too_low_in_the_image_is_neither_true_nor_false() -> None:
    heights = [np.array([24.9, 60.0])]
    false_first = [seen((40, 0.95), (0, 0.9))]
    assert average_precision(match(false_first, [cars(0)], "Car", difficulty="moderate", heights=heights)) == 1
    assert average_precision(match(false_first, [cars(0)], "Car", difficulty="moderate")) == 0.5
    low = match([seen((0, 0.95), (40, 0.9))], [cars(0)], "Car", difficulty="moderate", heights=heights)
    assert average_precision(low) == 0


def test_objects_of_few_points_are_ignored() -> None:
    truth = labels(cars(0, 20, 40).boxes, ("Car",) * 3, num_points=np.array([10, 2, -1]))
    matches = match([seen((20, 0.95), (0, 0.9), (40, 0.8))], [truth], "Car", min_points=5)
    assert matches[0].objects == 2, "unknown is not few"
    assert average_precision(matches) == 1
    assert match_centres([seen()], [truth], "Car", 1, min_points=5)[0].objects == 2


def test_the_third_dimension_matters_in_3d_alone() -> None:
    raised = Detections(seen((0, 1)).boxes + np.array([0, 0, 0.5, 0, 0, 0, 0]), np.array([1.0]), ("Car",))
    assert average_precision(match([raised], [cars(0)], "Car", "bev")) == 1
    assert average_precision(match([raised], [cars(0)], "Car", "3d")) == 0
    assert average_precision(match([raised], [cars(0)], "Car", "3d", iou=0.4)) == 1


def test_a_different_number_of_frames_or_a_class_without_an_overlap_is_refused() -> None:
    with pytest.raises(ValueError, match="no overlap is agreed for class 'Tram'"):
        match([seen()], [cars()], "Tram")
    with pytest.raises(ValueError, match="2 frames cannot be matched to labels of 1"):
        match([seen(), seen()], [cars()], "Car")


# ---------------------------------------------------------------- KITTI's rules, once more as a plain loop


def loop(
    overlap: NDArray[Any],
    scores: Sequence[float],
    counted: Sequence[bool],
    low: Sequence[bool],
    threshold: float | None,
) -> tuple[int, int, list[float]]:
    """One frame by the rules in the module's docstring: (true, false, scores of the true); no threshold: by best score."""
    taken: set[int] = set()
    true: list[float] = []
    for row, counts in zip(overlap, counted, strict=True):
        open_to = [
            k for k, s in enumerate(scores) if k not in taken and row[k] > 0.5 and (threshold is None or s >= threshold)
        ]
        if not open_to:
            continue
        if threshold is None:
            chosen = max(open_to, key=lambda k: scores[k])
        else:
            chosen = max(open_to, key=lambda k: (not low[k], row[k] if not low[k] else 0))
        taken.add(chosen)
        if counts and not low[chosen]:
            true.append(scores[chosen])
    visible = [k for k, s in enumerate(scores) if threshold is None or s >= threshold]
    return len(true), sum(k not in taken and not low[k] for k in visible), true


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 6), st.integers(0, 12), st.integers(0, 10**6))
def test_matching_is_the_devkits_at_every_threshold(objects_: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth_boxes = cars(*rng.uniform(0, 10, objects_)).boxes
    found_boxes = cars(*rng.uniform(0, 10, count)).boxes
    scores = np.round(rng.random(count), 1)  # with ties
    heights, counted = rng.choice([10.0, 50.0], count), rng.random(objects_) < 0.7
    truth = Labels(
        truth_boxes,
        ("Car",) * objects_,
        np.full(objects_, -1),
        np.where(counted, 0, 3),
        np.zeros(objects_),
        np.full(objects_, 99.0),
    )
    found = Detections(found_boxes, scores, ("Car",) * count)
    frame = match([found], [truth], "Car", iou=0.5, difficulty="hard", heights=[heights])[0]
    overlap, low = iou_bev(truth_boxes, found_boxes), (heights < 25).tolist()
    assert frame.objects == counted.sum()
    assert frame.scores.tolist() == sorted(set(scores), reverse=True)
    assert sorted(frame.found) == sorted(loop(overlap, scores.tolist(), counted.tolist(), low, None)[2])
    for k, score in enumerate(frame.scores):
        wanted = loop(overlap, scores.tolist(), counted.tolist(), low, score)
        assert (frame.true[k], frame.false[k]) == wanted[:2]


def devkit_places(found: int, count: int) -> list[int]:
    """evaluate_object.cpp's choice of thresholds, in doubles as there."""
    places, recall = [], 0.0
    for i in range(found):
        here, following = (i + 1) / count, min(i + 2, found) / count
        if following - recall < recall - here and i < found - 1:
            continue
        places.append(i)
        recall += 1.0 / 40.0
    return places


@settings(deadline=None)
@given(st.integers(41, 400), st.floats(0, 1), st.integers(0, 10**6))
def test_recall_advances_as_in_the_devkit(count: int, share: float, seed: int) -> None:
    """Sampled precision from the devkit's places; the true detections' scores and those of false ones are random."""
    rng = np.random.default_rng(seed)
    true_scores = np.sort(rng.random(round(share * count)))[::-1]
    false_scores = rng.random(rng.integers(0, 300))
    events = np.sort(np.concatenate([true_scores, false_scores]))[::-1]
    frame = FrameMatches(
        objects=count,
        scores=events,
        true=(true_scores >= events[:, None]).sum(1),
        false=(false_scores >= events[:, None]).sum(1),
        found=true_scores,
    )
    precision = np.zeros(41)
    for step, place in enumerate(devkit_places(len(true_scores), count)):
        precision[step] = (place + 1) / (place + 1 + (false_scores >= true_scores[place]).sum())
    wanted = np.mean([precision[step:].max() for step in range(1, 41)])
    assert average_precision([frame]) == pytest.approx(wanted, abs=1e-12)


def test_a_tie_between_two_places_goes_where_the_devkits_doubles_send_it() -> None:
    """60 cars, all found, and 60 false detections between the scores of the 22nd and the 23rd car.

    Step 15 is recall 22.5 / 60, as near to 22 cars as to 23; 15 fortieths added up in doubles are above 0.375, so it takes 23.
    Steps 1 to 14 have precision 1, steps 15 to 40 that of all detections, 60 / 120.
    """
    true_scores = np.concatenate([np.linspace(0.9, 0.8, 22), np.linspace(0.3, 0.1, 38)])
    events = np.sort(np.concatenate([true_scores, np.linspace(0.6, 0.4, 60)]))[::-1]
    true = (true_scores >= events[:, None]).sum(1)
    frame = FrameMatches(60, events, true, np.arange(1, 121) - true, true_scores)
    assert average_precision([frame]) == pytest.approx((14 + 26 * 0.5) / 40, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150))
def test_a_perfect_detector_reaches_one_whatever_the_number_of_objects(count: int) -> None:
    truth, found = cars(*(10.0 * i for i in range(count))), seen(*((10.0 * i, 0.5 + i / 1000) for i in range(count)))
    assert ap(found, truth) == 1


# ---------------------------------------------------------------- nuScenes


def test_nuscenes_precision_by_hand() -> None:
    truth, found = cars(0, 20), seen((0.9, 0.9), (40, 0.8), (20, 0.7))
    # recall 1/2 at precision 1, then precision 1/2 and, at recall 1, 2/3, with a straight line between
    sampled = [1.0] * 39 + [0.5 + (2 / 3 - 0.5) * i / 50 for i in range(51)]
    wanted = sum(p - 0.1 for p in sampled) / 90 / 0.9
    assert average_precision_nuscenes(match_centres([found], [truth], "Car", 1)) == pytest.approx(wanted)
    assert average_precision_nuscenes(match_centres([seen((0, 0.9), (20, 0.8))], [truth], "Car", 1)) == pytest.approx(1)
    assert average_precision_nuscenes(match_centres([seen()], [truth], "Car", 1)) == 0


def test_the_surer_detection_takes_the_nearest_object_and_the_next_what_is_left() -> None:
    frame = match_centres([seen((1, 0.8), (0.4, 0.9), (9, 0.7))], [cars(0, 2)], "Car", 2)[0]
    assert frame.true.tolist() == [1, 2, 2]
    assert frame.false.tolist() == [0, 0, 1]
    assert match_centres([seen((1, 0.9))], [cars(0)], "Car", 1)[0].true.tolist() == [0], "nearer than, not as near as"
    ignoring = match_centres([seen((40, 0.95), (0, 0.9))], [objects(("Car", 0), ("Van", 40))], "Car", 1)[0]
    assert ignoring.false.tolist() == [0, 0]


# ---------------------------------------------------------------- interval


def drives(seed: int, frames: int = 60) -> tuple[list[Labels], list[Detections], list[Detections]]:
    """Two cars a frame; a detector, and one that differs in that it misses a car in every sixth frame."""
    rng = np.random.default_rng(seed)
    truth, good, worse = [], [], []
    for i in range(frames):
        truth.append(cars(0, 20))
        found = [(0.0, rng.random()), (20.0, rng.random()), (40.0, rng.random() * 0.7)][
            : 3 if rng.random() < 0.5 else 2
        ]
        good.append(seen(*found))
        worse.append(seen(*found[1:]) if i % 6 == 0 else seen(*found))
    return truth, good, worse


def test_a_detector_does_not_differ_from_itself() -> None:
    truth, good, _ = drives(0)
    matches = match(good, truth, "Car")
    assert bootstrap_difference(matches, matches) == (0, 0, 0)


def test_the_interval_holds_the_difference_and_leaves_out_nought() -> None:
    truth, good, worse = drives(0)
    a, b = match(good, truth, "Car"), match(worse, truth, "Car")
    difference, low, high = bootstrap_difference(a, b)
    assert difference == pytest.approx(average_precision(a) - average_precision(b))
    assert 0 < low < difference < high < 0.25
    back = bootstrap_difference(b, a)
    assert back == pytest.approx((-difference, -high, -low))
    assert bootstrap_difference(a, b, seed=0) == (difference, low, high)
    assert bootstrap_difference(a, b, seed=1)[1:] != (low, high)


@pytest.mark.parametrize("metric", ["r40", "nuscenes"])
def test_weighting_frames_is_drawing_them_several_times(metric: Literal["r40", "nuscenes"]) -> None:
    truth, good, worse = drives(1, frames=12)
    a, b = match(good, truth, "Car"), match(worse, truth, "Car")
    measure = {"r40": average_precision, "nuscenes": average_precision_nuscenes}[metric]
    differences = []
    for draw in np.random.default_rng(7).multinomial(12, np.full(12, 1 / 12), 50):
        chosen = np.repeat(np.arange(12), draw)
        differences.append(measure([a[i] for i in chosen]) - measure([b[i] for i in chosen]))
    wanted = np.percentile(differences, [2.5, 97.5])
    np.testing.assert_allclose(bootstrap_difference(a, b, 50, 7, metric)[1:], wanted, atol=1e-12)


def test_pairing_needs_the_same_objects() -> None:
    truth, good, _ = drives(0)
    matches = match(good, truth, "Car")
    with pytest.raises(ValueError, match="same objects of the same frames"):
        bootstrap_difference(matches, matches[:-1])
