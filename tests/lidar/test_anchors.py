"""The anchor head: boxes worked out by hand from its maps, and the real PointPillars end to end on KITTI."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeq.lidar import kitti
from edgeq.lidar.anchors import anchor_head, decode
from edgeq.lidar.average_precision import average_precision, match

FRAMES = ("000005", "000031", "001497", "002454", "004185", "007112")
META = {
    "classes": ["Car", "Cyclist"],
    "range": [0, -8, -3, 16, 8, 1],
    "grid_xy": [16, 12],
    "out_stride": 4,
    "anchors": [
        {"cls": "Car", "lwh": [4, 3, 1.5], "bottom_z": -1.75, "rot": [0, 1.57]},
        {"cls": "Cyclist", "lwh": [1.8, 0.6, 1.7], "bottom_z": -0.6, "rot": [0, 1.57]},
    ],
}


Maps = dict[str, NDArray[Any]]


def maps() -> Maps:
    """Maps of a head that sees nothing."""
    return {
        "cls": np.full((1, 8, 3, 4), -9.0, np.float32),
        "box": np.zeros((1, 28, 3, 4), np.float32),
        "dir": np.zeros((1, 8, 3, 4), np.float32),
    }


def test_the_anchors_come_from_the_description() -> None:
    head = anchor_head(META)
    assert (head["columns"], head["rows"]) == ([0, 16, 4], [-8, 8, 3])
    assert head["anchors"][1] == [4, 3, 1.5, -1.0, 1.57]
    assert [a[:3] for a in head["anchors"]] == [[4, 3, 1.5], [4, 3, 1.5], [1.8, 0.6, 1.7], [1.8, 0.6, 1.7]]


def test_an_anchor_that_does_not_move_is_the_box() -> None:
    head = anchor_head(META)
    seen = maps()
    seen["cls"][0, 0 * 2 + 0, 1, 2] = 2.0  # anchor 0 (car, heading 0), class 0, second row, third column
    seen["dir"][0, 0 * 2 + 1, 1, 2] = 1.0  # heading 0 lies in the second half turn
    found = decode(seen, head)
    np.testing.assert_allclose(found.boxes, [[32 / 3, 0, -1, 4, 3, 1.5, 2 * np.pi - 2 * np.pi]], atol=1e-9)
    np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-2))])
    assert found.classes.tolist() == [0]
    assert (found.anchors[0], found.rows[0], found.columns[0]) == (0, 1, 2)


def test_moves_are_in_units_of_the_anchor() -> None:
    head = anchor_head(META)
    seen = maps()
    seen["cls"][0, 3 * 2 + 1, 0, 1] = 0.0  # anchor 3 (cyclist, heading 1.57), class 1
    seen["box"][0, 21:28, 0, 1] = [0.5, -1, 0.1, np.log(2), 0, np.log(0.5), 0.2]
    diagonal = np.hypot(1.8, 0.6)
    found = decode(seen, head)
    wanted = [16 / 3 + diagonal / 2, -8 - diagonal, 0.25 + 0.17, 3.6, 0.6, 0.85, 1.77]
    np.testing.assert_allclose(found.boxes, [wanted], rtol=1e-6)
    assert (found.scores.tolist(), found.classes.tolist()) == ([0.5], [1])


@pytest.mark.parametrize(
    ("heading", "facing", "wanted"),
    [
        (0.0, 0, -np.pi),
        (0.0, 1, 0.0),
        (1.0, 0, 1.0),
        (1.0, 1, 1.0 - np.pi),
        (-1.0, 0, np.pi - 1),
        (3.5, 1, 3.5 - np.pi),
    ],
)
def test_the_direction_bin_says_which_way_round(heading: float, facing: int, wanted: float) -> None:
    """Bin 0 is [π/4, 5π/4), bin 1 the rest, whatever half turn the regression chose."""
    head = anchor_head(META)
    seen = maps()
    seen["cls"][0, 0, 0, 0], seen["box"][0, 6, 0, 0], seen["dir"][0, facing, 0, 0] = 5.0, heading, 1.0
    yaw = decode(seen, head).boxes[0, 6]
    assert np.cos(yaw - wanted) == pytest.approx(1)


def test_low_scores_neighbours_and_nonsense_are_left_out() -> None:
    head = anchor_head(META)
    seen = maps()
    seen["cls"][0, 0, 0, 0] = 3.0
    seen["cls"][0, 4, 0, 0] = 2.0  # a cyclist within the car
    seen["cls"][0, 0, 2, 3] = -2.3  # 0.091
    seen["cls"][0, 0, 2, 0], seen["box"][0, 3, 2, 0] = 4.0, 1000.0  # e to the 1000 metres long
    seen["cls"][0, 2, 0, 3] = np.nan
    assert decode(seen, head).classes.tolist() == [0]
    assert decode(maps(), head).boxes.shape == (0, 7)
    with pytest.raises(ValueError, match=r"box must be of shape \[1, 28, 3, 4\]"):
        decode({**seen, "box": seen["box"][:, :14]}, head)


@pytest.mark.data
def test_the_real_pointpillars_finds_the_cars_of_kitti(data: Path) -> None:
    """Six frames with 20 cars, hard ones too: 0.86 in BEV and in 3D when this was written, one car is 0.05."""
    from edgeq.examples import pointpillars_kitti as example  # reads EDGEQ_DATA, which the fixture has set

    network = example.model()
    frames = list(kitti.read_frames(data / "kitti" / "eval", FRAMES))
    detections = [example.DETECTOR.detect(frame.points, network) for frame in frames]
    labels = [frame.labels for frame in frames if frame.labels]
    assert average_precision(match(detections, labels, "Car")) > 0.8
    assert average_precision(match(detections, labels, "Car", "3d")) > 0.8
    assert average_precision(match(detections, labels, "Car", difficulty="moderate")) > 0.9
