"""KITTI's files: one made by hand, broken ones, and the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeq.lidar import kitti
from edgeq.spec import EdgeqError

# a camera that looks along x from the lidar's place, 700 pixels focal length, its axis in the middle of the image
CALIBRATION = """P2: 700 0 621 0 0 700 187.5 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0
"""
# 20 m ahead and 2 m to the left, its bottom 1.7 m below; rotation 0 is along the camera's x, to the right
LABELS = """Car 0.25 1 -0.10 600.0 150.0 700.0 210.5 1.5 1.8 4.0 -2.0 1.7 20.0 0.0
DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10
Pedestrian 0.00 0 0.2 0 0 10 30 1.8 0.6 0.8 3.0 1.7 10.0 -1.5707963
"""
POINTS = np.array([[20, 2, -1, 0.5], [20, 2, 0, 0.5], [20, 30, -1, 0.5], [-20, 0, 0, 0.5]], np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder, text in (("calib", CALIBRATION), ("label_2", LABELS)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "000007.txt").write_text(text)
    (tmp_path / "velodyne").mkdir()
    POINTS.tofile(tmp_path / "velodyne" / "000007.bin")
    return tmp_path


def test_an_object_frame_in_the_lidar_frame(root: Path) -> None:
    (frame,) = kitti.read_frames(root)
    assert frame.name == "000007"
    np.testing.assert_array_equal(frame.points, POINTS[:2])  # the others lie outside the image
    labels = frame.labels
    assert labels is not None
    assert labels.classes == ("Car", "Pedestrian")
    np.testing.assert_allclose(labels.boxes[0], [20, 2, -1.7 + 0.75, 4, 1.8, 1.5, -np.pi / 2], atol=1e-6)
    np.testing.assert_allclose(labels.boxes[1], [10, -3, -0.8, 0.8, 0.6, 1.8, 0], atol=1e-6)
    assert labels.num_points.tolist() == [1, 0]
    assert labels.occlusion.tolist() == [1, 0]
    assert labels.truncation.tolist() == [0.25, 0]
    assert labels.bbox_height.tolist() == [60.5, 30]


def test_a_frame_without_objects_or_without_labels(root: Path) -> None:
    path = root / "label_2" / "000007.txt"
    path.write_text("")
    (frame,) = kitti.read_frames(root, ["000007"])
    assert frame.labels is not None
    assert frame.labels.boxes.shape == (0, 7)
    path.unlink()
    with pytest.raises(EdgeqError, match=r"000007\.txt"):
        list(kitti.read_frames(root))
    path.parent.rmdir()
    (frame,) = kitti.read_frames(root)
    assert frame.labels is None


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("velodyne/000007.bin", POINTS.tobytes()[:-4], r"000007\.bin has 60 bytes, not a multiple of 16"),
        (
            "velodyne/000007.bin",
            (POINTS * [1, np.nan, 1, 1]).astype(np.float32).tobytes(),
            r"000007\.bin: 4 of 4 points",
        ),
        ("velodyne/000007.bin", None, r"000007\.bin: No such file"),
        ("calib/000007.txt", None, r"calib/000007\.txt"),
        (
            "calib/000007.txt",
            CALIBRATION.replace("R0_rect", "R1_rect").encode(),
            r"calib/000007\.txt has no line R0_rect",
        ),
        (
            "calib/000007.txt",
            CALIBRATION.replace("0 -1 0 0 0", "0 -1 0 x 0").encode(),
            r"Tr_velo_to_cam must be 3×4 numbers",
        ),
        ("calib/000007.txt", b"\xff\xfe", r"calib/000007\.txt"),
        ("label_2/000007.txt", b"Car 0 0 1\n", r"label_2/000007\.txt, line 1: an object is a type and 14 numbers"),
    ],
)
def test_a_broken_file_is_named(root: Path, path: str, content: bytes | None, message: str) -> None:
    if content is None:
        (root / path).unlink()
    else:
        (root / path).write_bytes(content)
    with pytest.raises(EdgeqError, match=message):
        list(kitti.read_frames(root, ["000007"]))


def test_a_folder_without_frames_is_named(tmp_path: Path) -> None:
    with pytest.raises(EdgeqError, match=r"holds no \.bin file"):
        list(kitti.read_frames(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"0": [{"type": "Car"}]}', '{"0": [{"type": "Car", "box": [1], "occ": 0}]}']
)
def test_broken_tracklets_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "calib.txt").write_text(CALIBRATION)
    (tmp_path / "velodyne").mkdir()
    POINTS.tofile(tmp_path / "velodyne" / "0.bin")
    (tmp_path / "boxes.json").write_text(text)
    with pytest.raises(EdgeqError, match=r"boxes\.json"):
        kitti.read_drive(tmp_path)


def test_a_drive(tmp_path: Path) -> None:
    (tmp_path / "calib.txt").write_text(CALIBRATION)
    (tmp_path / "velodyne").mkdir()
    POINTS.tofile(tmp_path / "velodyne" / "0.bin")
    objects = [
        {"type": "Car", "box": [20, 2, -0.95, 4, 1.8, 1.5, 0], "occ": 1, "trunc": 0},
        {"type": "Van", "box": [-20, 0, 0, 4, 2, 2, 0], "occ": -1, "trunc": 99},
    ]
    (tmp_path / "boxes.json").write_text(json.dumps({"0": objects}))
    (frame,) = kitti.read_drive(tmp_path)
    assert frame.labels is not None
    assert frame.labels.occlusion.tolist() == [1, 3]
    assert frame.labels.num_points.tolist() == [1, 0]
    # the nearer face, 18 m off, spans z from −1.7 to −0.2; the farther one, 22 m off, ends higher in the image
    height = 700 * (1.7 / 18 - 0.2 / 22)
    np.testing.assert_allclose(frame.labels.bbox_height[0], height)
    np.testing.assert_allclose(frame.labels.truncation, [0, 1])


def test_the_image_cuts_a_box_in_half() -> None:
    folder = kitti.Calibration(
        np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]),
        np.array([[700, 0, 621, 0], [0, 700, 187.5, 0], [0, 0, 1.0, 0]]),
    )
    # a thin plate across the left border, which lies 621 / 700 of the distance to the left
    box = np.array([[10, 621 / 70, 0, 0, 2, 2, 0]])
    rectangle, truncation = kitti.project(box, folder)
    np.testing.assert_allclose(rectangle, [[0, 117.5, 70, 257.5]])
    np.testing.assert_allclose(truncation, [0.5])


@pytest.mark.data
def test_projected_boxes_are_as_truncated_as_the_labels_say(data: Path) -> None:
    frames = [f for part in ("train", "eval") for f in kitti.read_frames(data / "kitti" / part)]
    assert len(frames) == 41
    for frame in frames:
        assert frame.labels is not None
        part = "train" if (data / "kitti" / "train" / "calib" / f"{frame.name}.txt").is_file() else "eval"
        calibration = kitti.read_calibration(data / "kitti" / part / "calib" / f"{frame.name}.txt")
        _, truncation = kitti.project(frame.labels.boxes, calibration)
        np.testing.assert_allclose(truncation, frame.labels.truncation, atol=0.05)
    counts = np.concatenate([f.labels.num_points for f in frames if f.labels])
    assert np.median(counts) > 50, "the boxes stand where the points are"


@pytest.mark.data
def test_the_drive_has_its_vans_and_cars(data: Path) -> None:
    frames = kitti.read_drive(data / "kitti_drive_0005")
    names = [c for f in frames if f.labels for c in f.labels.classes]
    assert {n: names.count(n) for n in set(names)} == {"Van": 146, "Car": 123, "Cyclist": 77, "Pedestrian": 11}
    assert len(frames) == 77
    occupied = [
        n > 0
        for f in frames
        if f.labels
        for n, t in zip(f.labels.num_points, f.labels.truncation, strict=True)
        if t < 0.9
    ]
    assert all(occupied)
