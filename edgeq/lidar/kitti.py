"""KITTI's files (Geiger et al. 2012) as frames: object frames and a drive with tracklets, boxes in the lidar frame.

Points and boxes are cut to what the left colour camera sees, as KITTI labels nothing else. Regions of type "DontCare" are
left out: they are rectangles in the image without an extent in space, and the devkit's BEV and 3D evaluation, which gives
them coordinates of −1000 m, never finds a detection in one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.lidar.boxes import corners_bev, count_inside
from edgeq.lidar.frame import Frame, Labels
from edgeq.spec import EdgeqError

Floats = NDArray[np.float64]

IMAGE = (1242, 375)  # width and height in pixels of most of KITTI's images; the others are within 20 pixels
NEAREST = 0.1  # metres before the camera; what is nearer is projected as if it were here


@dataclass(frozen=True, slots=True)
class Calibration:
    """to_camera: [4, 4], lidar frame → rectified camera 0 (x right, y down, z forward); projection: [3, 4], on to image 2."""

    to_camera: Floats
    projection: Floats


def read_frames(root: Path, names: Sequence[str] | None = None) -> Iterator[Frame]:
    """Object frames of a folder with velodyne/, calib/ and, where there are labels, label_2/; all of them, or `names`.

    Raises:
        EdgeqError: a file is missing or broken; names it.
    """
    if names is None:
        names = [path.stem for path in sorted((root / "velodyne").glob("*.bin"))]
        if not names:
            raise EdgeqError(f"{root / 'velodyne'} holds no .bin file: give a folder of KITTI object frames")
    for name in names:
        calibration = read_calibration(root / "calib" / f"{name}.txt")
        points = in_view(read_points(root / "velodyne" / f"{name}.bin"), calibration)
        path = root / "label_2" / f"{name}.txt"
        yield Frame(name, points, _read_labels(path, calibration, points) if path.parent.is_dir() else None)


def read_drive(folder: Path) -> list[Frame]:
    """A drive of KITTI's raw data: velodyne/, calib.txt, and boxes.json with the tracklets of each frame.

    Tracklets have no 2D boxes: image height and truncation come from the projected box.

    Raises:
        EdgeqError: a file is missing or broken; names it.
    """
    calibration = read_calibration(folder / "calib.txt")
    path = folder / "boxes.json"
    try:
        frames: dict[str, list[dict[str, Any]]] = json.loads(_text(path))
        result = []
        for name, objects in sorted(frames.items()):
            points = in_view(read_points(folder / "velodyne" / f"{name}.bin"), calibration)
            boxes = np.array([o["box"] for o in objects], np.float64).reshape(len(objects), 7)
            rectangles, truncation = project(boxes, calibration)
            labels = Labels(
                boxes=boxes,
                classes=tuple(o["type"] for o in objects),
                num_points=count_inside(points, boxes),
                occlusion=np.array([o["occ"] if o["occ"] >= 0 else 3 for o in objects], np.int64),
                truncation=truncation,
                bbox_height=rectangles[:, 3] - rectangles[:, 1],
            )
            result.append(Frame(name, points, labels))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EdgeqError(f"{path} is not a file of tracklet boxes per frame: {error!r}") from error
    return result


def read_points(path: Path) -> NDArray[np.float32]:
    """A velodyne file as float32 [N, 4]: x, y, z in metres, reflectance in 0..1.

    Raises:
        EdgeqError: no such file, not a whole number of points, or a number that is not finite.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EdgeqError(f"cannot read {path}: {error.strerror}") from error
    if len(content) % 16:
        raise EdgeqError(
            f"{path} has {len(content)} bytes, not a multiple of 16 (four float32 a point): it is cut short"
        )
    points = np.frombuffer(content, np.float32).reshape(-1, 4)
    broken = np.count_nonzero(~np.isfinite(points).all(1))
    if broken:
        raise EdgeqError(
            f"{path}: {broken} of {len(points)} points have a coordinate or reflectance that is not finite"
        )
    return points


def read_calibration(path: Path) -> Calibration:
    """A calib file's lines P2, R0_rect and Tr_velo_to_cam.

    Raises:
        EdgeqError: no such file, or a line is missing or not of 12 (R0_rect: 9) numbers.
    """
    lines = dict(line.split(":", 1) for line in _text(path).splitlines() if ":" in line)
    matrices = []
    for key, shape in (("P2", (3, 4)), ("R0_rect", (3, 3)), ("Tr_velo_to_cam", (3, 4))):
        try:
            matrices.append(np.array(lines[key].split(), np.float64).reshape(shape))
        except KeyError:
            raise EdgeqError(f"{path} has no line {key}: it is not the calibration of a KITTI object frame") from None
        except ValueError:
            raise EdgeqError(
                f"{path}: {key} must be {shape[0]}×{shape[1]} numbers, not {lines[key].strip()!r}"
            ) from None
    projection, rectify, to_camera_0 = matrices
    to_camera = np.eye(4)
    to_camera[:3] = rectify @ to_camera_0
    return Calibration(to_camera, projection)


def in_view(points: NDArray[np.float32], calibration: Calibration) -> NDArray[np.float32]:
    """Those of the `points` [N, 4] that the camera sees."""
    pixels, depth = _to_image(points[:, :3], calibration)
    return points[(depth > 0) & (pixels >= 0).all(1) & (pixels < IMAGE).all(1)]


def project(boxes: Floats, calibration: Calibration) -> tuple[Floats, Floats]:
    """Boxes [M, 7] in the image: rectangles left, top, right, bottom [M, 4] in pixels, cut at its border; share cut off [M].

    A detector's rectangle height, bottom − top, is what KITTI's difficulties go by; truncation is as in KITTI's labels:
    the share of the rectangle outside the image, 1 for a box that is not in it.
    """
    ground = np.repeat(corners_bev(boxes), 2, axis=1)  # [M, 8, 2]
    height = boxes[:, 2:3] + np.tile([-0.5, 0.5], 4) * boxes[:, 5:6]
    pixels, depth = _to_image(np.concatenate([ground, height[..., None]], 2).reshape(-1, 3), calibration)
    pixels, depth = pixels.reshape(-1, 8, 2), depth.reshape(-1, 8)
    low, high = pixels.min(1), pixels.max(1)
    cut_low, cut_high = np.clip(low, 0, np.subtract(IMAGE, 1)), np.clip(high, 0, np.subtract(IMAGE, 1))
    share = np.prod(cut_high - cut_low, 1) / np.maximum(np.prod(high - low, 1), 1e-9)
    share[depth.max(1) <= NEAREST] = 0
    return np.concatenate([cut_low, cut_high], 1), 1 - share


def _to_image(points: NDArray[Any], calibration: Calibration) -> tuple[Floats, Floats]:
    """Points [N, 3] → pixel x, y [N, 2] and depth before the camera in metres [N]."""
    camera = points @ calibration.to_camera[:3, :3].T + calibration.to_camera[:3, 3]
    depth = camera[:, 2].copy()
    camera[:, 2] = np.maximum(depth, NEAREST)
    pixels = camera @ calibration.projection[:, :3].T + calibration.projection[:, 3]
    return pixels[:, :2] / pixels[:, 2:], depth


def _read_labels(path: Path, calibration: Calibration, points: NDArray[np.float32]) -> Labels:
    """A label_2 file: one object a line: type, truncation, occlusion, alpha, 2D box, h, w, l, location, rotation_y.

    The location is the middle of the box's bottom in the rectified camera frame, rotation_y turns about that frame's y.
    """
    classes, rows = [], []
    for number, line in enumerate(_text(path).splitlines(), 1):
        kind, *fields = line.split()
        if kind == "DontCare":
            continue
        try:
            rows.append(np.array(fields[:14], np.float64).reshape(14))
        except ValueError:
            raise EdgeqError(
                f"{path}, line {number}: an object is a type and 14 numbers, not {line.strip()!r}"
            ) from None
        classes.append(kind)
    table = np.array(rows).reshape(-1, 14)
    truncation, occlusion, _, _, top, _, bottom, h, w, length, _, _, _, rotation = table.T
    middle = table[:, 10:13] - np.outer(h / 2, [0, 1, 0])
    to_lidar = np.linalg.inv(calibration.to_camera)
    centre = middle @ to_lidar[:3, :3].T + to_lidar[:3, 3]
    heading = np.stack([np.cos(rotation), np.zeros_like(rotation), -np.sin(rotation)], 1) @ to_lidar[:3, :3].T
    boxes = np.column_stack([centre, length, w, h, np.arctan2(heading[:, 1], heading[:, 0])])
    return Labels(
        boxes=boxes,
        classes=tuple(classes),
        num_points=count_inside(points, boxes),
        occlusion=occlusion.astype(np.int64),
        truncation=truncation,
        bbox_height=bottom - top,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EdgeqError(f"cannot read {path}: {error}") from error
