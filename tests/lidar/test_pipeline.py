"""From raw points to inputs and boxes: odd clouds have a clear outcome, and padding changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeq.lidar import pipeline
from edgeq.lidar.detectors import DETECTORS, Detector
from edgeq.lidar.scenes import HDL64_FRONT, scene


@pytest.fixture(scope="module", params=sorted(DETECTORS))
def detector(request: pytest.FixtureRequest) -> Detector:
    return DETECTORS[request.param]


def cloud(kind: str) -> np.ndarray:
    return {
        "empty": np.zeros((0, 4), np.float32),
        "out of range": np.full((50, 4), 500.0, np.float32),
        "NaN": np.full((50, 4), np.nan, np.float32),
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "out of range", "NaN"])
def test_a_cloud_without_usable_points_runs_and_is_counted(detector: Detector, kind: str) -> None:
    points = cloud(kind)
    ready = pipeline.prepare(points, detector.pipeline)
    assert ready.ignored == len(points) and not any(ready.dropped)
    assert not ready.inputs[0].any()
    torch.manual_seed(0)
    found = detector.detect(points, detector.network().eval())
    assert found.boxes.shape[1] == 7  # an untrained network may see anything; it must not fail


def test_three_columns_are_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match="four columns"):
        pipeline.prepare(np.zeros((10, 3), np.float32), detector.pipeline)


def test_points_with_nan_are_left_out_and_counted(detector: Detector) -> None:
    points = scene(1, HDL64_FRONT).points
    broken = np.concatenate([points, np.full((3, 4), np.nan, np.float32)])
    clean, dirty = (pipeline.prepare(p, detector.pipeline) for p in (points, broken))
    assert dirty.ignored == clean.ignored + 3
    for a, b in zip(clean.inputs, dirty.inputs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_the_limits_leave_out_is_counted(detector: Detector) -> None:
    points = scene(2, HDL64_FRONT).points
    encoder = dict(detector.pipeline["encoder"])
    if encoder["kind"] == "pillars":
        encoder["max_pillars"] = 1000
    else:
        encoder["limits"] = [1000, 800, 600]
    full = pipeline.prepare(points, detector.pipeline, padded=False)
    less = pipeline.prepare(points, {**detector.pipeline, "encoder": encoder})
    real = full.inputs[0].shape[2] if encoder["kind"] == "pillars" else len(full.inputs[0])
    assert less.dropped[0] == real - 1000


def test_padding_does_not_change_the_boxes(detector: Detector) -> None:
    torch.manual_seed(0)
    network = detector.network().eval()
    points = scene(3, HDL64_FRONT).points
    with torch.no_grad():
        tight, full = (
            network(*map(torch.from_numpy, pipeline.prepare(points, detector.pipeline, padded).inputs))
            for padded in (False, True)
        )
    for name, value in tight.items():
        torch.testing.assert_close(value, full[name], atol=1e-4, rtol=1e-4)
