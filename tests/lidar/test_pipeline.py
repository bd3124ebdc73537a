"""From raw points to inputs and boxes: odd clouds have a clear outcome, and padding changes nothing."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeq.lidar import pipeline
from edgeq.lidar.anchors import anchor_head
from edgeq.lidar.detectors import DETECTORS, Detector
from edgeq.lidar.scenes import HDL64_FRONT, scene
from edgeq.lidar.tally import Tally, inputs
from edgeq.spec import EdgeqWarning


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
    assert less.dropped[0] == real - 1000 and less.found[0] == real == full.found[0] and not any(full.dropped)
    assert pipeline.left_out(less.dropped, less.found).startswith(f"{real - 1000} of {real} ")


def crowded(detector: Detector) -> Detector:
    """The detector with room for next to nothing."""
    encoder = {**detector.pipeline["encoder"], "max_pillars": 100, "limits": [100, 100, 100]}
    return dataclasses.replace(detector, pipeline={**detector.pipeline, "encoder": encoder})


def test_what_the_limits_leave_out_of_many_frames_is_heard_once_with_its_total(detector: Detector) -> None:
    small, clouds = crowded(detector), [scene(s, HDL64_FRONT).points for s in (4, 5)] + [cloud("empty")]
    wanted = sum(pipeline.prepare(p, small.pipeline).dropped[0] for p in clouds)
    with pytest.warns(EdgeqWarning) as heard:
        assert len(list(inputs(clouds, small.pipeline, "calibration"))) == 3
    (said,) = (str(w.message) for w in heard)
    assert said.startswith("calibration: 2 of 3 frames hold more") and f"so {wanted} of {wanted + 200} " in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(inputs(clouds, detector.pipeline, "calibration"))


def test_detect_warns_of_what_it_leaves_out_once_or_counts_it(detector: Detector) -> None:
    small, points = crowded(detector), scene(6, HDL64_FRONT).points
    heads = tuple(torch.full((1, n, 8, 8), -9.0) for n in (3, 2, 1, 3, 2, 1))
    tally = Tally()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        for seed in range(3):
            small.detect(scene(seed, HDL64_FRONT).points, lambda *inputs: heads)
        assert [w.category for w in heard] == [EdgeqWarning] and "more" in str(heard[0].message)
        small.detect(points, lambda *inputs: heads, tally=tally)
        assert len(heard) == 1
    ready = pipeline.prepare(points, small.pipeline)
    assert (tally.frames, tally.points, tally.ignored) == (1, len(points), ready.ignored)
    assert tally.dropped.tolist() == list(ready.dropped) and f"{ready.dropped[0]} of {ready.found[0]}" in str(tally)


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


@pytest.mark.parametrize("kind", ["pillars", "voxels", "centre", "anchors"])
def test_a_pipeline_that_lacks_a_key_is_refused_in_a_sentence_that_names_it(kind: str) -> None:
    name = "encoder" if kind in ("pillars", "voxels") else "head"
    meta = {"classes": ["Car"], "anchors": [{"lwh": [4, 2, 1.5], "bottom_z": -1.8, "rot": [0.0]}], "out_stride": 2}
    meta |= {"range": [0, -8, -3, 16, 8, 1], "grid_xy": [16, 16]}
    whole = {
        "pillars": DETECTORS["centerpoint_pillar"].pipeline["encoder"],
        "voxels": DETECTORS["centerpoint_voxel"].pipeline["encoder"],
        "centre": DETECTORS["centerpoint_pillar"].pipeline["head"],
        "anchors": anchor_head(meta),
    }[kind]
    assert pipeline.part({name: whole}, name) is whole
    documented = (Path(__file__).parents[2] / "docs" / "lidar.md").read_text()
    (row,) = (line for line in documented.splitlines() if line.startswith(f"| `{name}` | `{kind}`"))
    assert set(pipeline.NEEDED[name][kind]) <= set(whole) - {"kind"}
    for key in set(whole) - {"kind"}:
        less = {k: v for k, v in whole.items() if k != key}
        assert f"`{key}`" in row
        if key in ("feature_weight", "feature_bias"):
            pipeline.part({name: less}, name)
        else:
            with pytest.raises(ValueError, match=f"{name} lacks '{key}': kind '{kind}' needs .*{key}"):
                pipeline.part({name: less}, name)
    with pytest.raises(ValueError, match=f"{name} has kind 'pilars': write '.*' or '"):
        pipeline.part({name: {**whole, "kind": "pilars"}}, name)
    with pytest.raises(ValueError, match=f"no '{name}'"):
        pipeline.part({}, name)


def test_outputs_are_those_of_the_kind(detector: Detector) -> None:
    head = {**detector.pipeline["head"], "outputs": ["heatmap", "offset", "height", "size", "rotation"]}
    with pytest.raises(ValueError, match=r"kind 'centre' needs heatmap, .*direction"):
        pipeline.boxes({}, {"head": head})


def test_features_need_neither_weight_nor_bias() -> None:
    settings = DETECTORS["centerpoint_pillar"].pipeline
    encoder = {k: v for k, v in settings["encoder"].items() if not k.startswith("feature")}
    features = pipeline.prepare(scene(7, HDL64_FRONT).points, {"encoder": encoder}).inputs[0]
    weighted = pipeline.prepare(scene(7, HDL64_FRONT).points, settings).inputs[0]
    real = (weighted != 0).any(1)[0]
    wanted = features[0, 0][real] / 25.6 - 1  # x
    np.testing.assert_allclose(weighted[0, 0][real], wanted, atol=1e-6)
