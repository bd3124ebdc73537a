"""The centre head: boxes worked out by hand from its maps, targets that decode to the box they came from, positives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeq.lidar.anchors import anchor_head
from edgeq.lidar.boxes import iou_bev
from edgeq.lidar.centre import decode
from edgeq.lidar.detectors import DETECTORS
from edgeq.lidar.evaluate import agreement
from edgeq.lidar.frame import Detections, Frame, labels
from edgeq.lidar.positives import positives
from edgeq.lidar.training import targets

HEAD: dict[str, Any] = {**DETECTORS["centerpoint_pillar"].pipeline["head"], "origin": [0.0, -4.0], "cell": 1.0}
WIDTHS = {"heatmap": 3, "offset": 2, "height": 1, "size": 3, "rotation": 2, "direction": 1}
Maps = dict[str, NDArray[np.float32]]


def maps() -> Maps:
    """Maps [1, n, 8, 8] of a head that sees nothing."""
    made = {name: np.zeros((1, n, 8, 8), np.float32) for name, n in WIDTHS.items()}
    made["heatmap"] -= 9.0
    return made


def put(seen: Maps, kind: int, row: int, column: int, logit: float, **answers: Any) -> None:
    seen["heatmap"][0, kind, row, column] = logit
    for name, values in answers.items():
        seen[name][0, :, row, column] = values


def test_a_peak_is_a_box() -> None:
    seen = maps()
    size = np.log([4.0, 1.6, 1.5])
    put(seen, 0, 2, 5, 2.0, offset=(0.25, -0.5), height=-1.0, size=size, rotation=(1.0, 0.0), direction=3.0)
    found = decode(seen, HEAD)
    np.testing.assert_allclose(found.boxes, [[5.75, -4 + 2.0, -1, 4, 1.6, 1.5, np.pi / 4 + np.pi]], rtol=1e-6)
    np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-2))])
    assert (found.classes[0], found.rows[0], found.columns[0]) == (0, 2, 5)


def test_a_peak_without_a_finite_box_is_no_detection_and_no_logit_overflows() -> None:
    seen = maps()
    seen["heatmap"] -= 2000.0
    put(seen, 0, 2, 2, 3.0, size=(0.0, np.nan, 0.0))
    put(seen, 0, 2, 6, 3.0, height=-np.inf)
    put(seen, 1, 6, 5, 1e4)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        found = decode(seen, HEAD)
    assert (found.classes.tolist(), found.rows.tolist(), found.columns.tolist()) == ([1], [6], [5])
    assert found.scores.tolist() == [1.0] and found.boxes.shape == (1, 7)


def test_neighbours_of_a_peak_low_scores_and_overlapping_boxes_go() -> None:
    seen = maps()
    big = {"size": np.log([4.0, 4.0, 1.5]), "rotation": (0.0, 1.0)}
    put(seen, 0, 4, 4, 3.0, **big)
    put(seen, 0, 4, 5, 2.0, **big)  # beside the peak
    put(seen, 0, 6, 4, 2.5, **{**big, "offset": (0.0, -1.5)})  # a peak of its own, but the same box
    put(seen, 1, 4, 2, 1.0, **big)  # another class may overlap
    put(seen, 2, 0, 0, -3.0, **big)  # 0.047
    found = decode(seen, HEAD)
    assert list(zip(found.classes.tolist(), found.rows.tolist(), found.columns.tolist(), strict=True)) == [
        (0, 4, 4),
        (1, 4, 2),
    ]


def test_nothing_seen_is_no_box() -> None:
    assert decode(maps(), HEAD).boxes.shape == (0, 7)


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(0.5, 7.4),
    y=st.floats(-3.4, 3.4),
    yaw=st.floats(-3.1, 3.1),
    length=st.floats(1.0, 5.0),
    name=st.sampled_from(["Car", "Van", "Pedestrian", "Cyclist"]),
)
def test_targets_decode_to_the_box_they_came_from(x: float, y: float, yaw: float, length: float, name: str) -> None:
    box = np.array([[x, y, -0.8, length, 0.7, 1.6, yaw]])
    frame = Frame("", np.zeros((0, 4), np.float32), labels(box, (name,), np.array([9])))
    wanted = targets(frame, HEAD, (8, 8))
    heads = {k: wanted[k][None] for k in WIDTHS}
    heads["heatmap"] = np.where(heads["heatmap"] == 1, 5.0, -9.0).astype(np.float32)
    heads["direction"] = heads["direction"] * 2 - 1
    found = decode(heads, HEAD)
    assert HEAD["classes"][found.classes[0]] == ("Vehicle" if name in ("Car", "Van") else name)
    np.testing.assert_allclose(found.boxes[0, :6], box[0, :6], atol=1e-5)
    assert np.cos(found.boxes[0, 6] - yaw) == pytest.approx(1, abs=1e-5)
    assert iou_bev(found.boxes, box)[0, 0] > 0.999


def test_objects_with_few_points_are_not_taught() -> None:
    box = np.array([[4.0, 0.0, -0.8, 4.0, 1.6, 1.6, 0.0]])
    wanted = targets(Frame("", np.zeros((0, 4), np.float32), labels(box, ("Car",), np.array([4]))), HEAD, (8, 8))
    assert not wanted["heatmap"].any() and not wanted["weight"].any()


def test_positives_of_a_centre_head_are_its_boxes_cells() -> None:
    seen = maps()
    put(seen, 0, 2, 5, 2.0, rotation=(0.0, 1.0))
    masks = positives([torch.from_numpy(seen[k]) for k in HEAD["outputs"]], HEAD)
    assert masks is not None
    for mask, name in zip(masks, HEAD["outputs"], strict=True):
        assert mask.shape == seen[name].shape and float(mask.sum()) == WIDTHS[name]
        assert float(mask[0, :, 2, 5].sum()) == WIDTHS[name]
    assert positives([torch.from_numpy(maps()[k]) for k in HEAD["outputs"]], HEAD) is None


def test_positives_of_an_anchor_head_are_the_channels_of_its_boxes() -> None:
    anchors = [{"cls": "Car", "lwh": [4, 2, 1.5], "bottom_z": -1.7, "rot": [0, 1.57]}]
    meta = {
        "classes": ["Car"],
        "range": [0, -8, -3, 16, 8, 1],
        "grid_xy": [16, 16],
        "out_stride": 4,
        "anchors": anchors,
    }
    cls, box, facing = torch.full((1, 2, 4, 4), -9.0), torch.zeros(1, 14, 4, 4), torch.zeros(1, 4, 4, 4)
    cls[0, 1, 3, 2] = 2.0  # the second anchor
    masks = positives([cls, box, facing], anchor_head(meta))
    assert masks is not None
    for mask, channels in zip(masks, (slice(1, 2), slice(7, 14), slice(2, 4)), strict=True):
        wanted = torch.zeros_like(mask)
        wanted[0, channels, 3, 2] = 1
        assert torch.equal(mask, wanted)


def test_agreement_counts_sure_float_boxes_only() -> None:
    boxes = np.array([[10.0 * i, 0, 0, 4, 2, 1.5, 0] for i in range(1, 5)])
    names = ("Vehicle",) * 4
    reference = Detections(boxes, np.array([0.9, 0.8, 0.7, 0.2]), names)
    assert agreement([reference], [reference], "Vehicle") == 1
    lost = Detections(boxes[1:], np.array([0.8, 0.7, 0.2]), names[1:])
    assert agreement([lost], [reference], "Vehicle") < 0.7
    weak = Detections(boxes[:3], np.array([0.9, 0.8, 0.7]), names[:3])
    assert agreement([weak], [reference], "Vehicle") == 1, "the box of score 0.2 need not be repeated"
    moved = Detections(boxes + np.array([1.0, 0, 0, 0, 0, 0, 0]), reference.scores, names)
    assert agreement([moved], [reference], "Vehicle") == 0
