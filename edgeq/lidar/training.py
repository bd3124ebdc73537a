"""Training a centre detector: augmentation, targets and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edgeq.lidar.boxes import inside
from edgeq.lidar.evaluate import LEAST_POINTS
from edgeq.lidar.frame import Frame, labels

CLASS_OF = {"Car": 0, "Van": 0, "Pedestrian": 1, "Cyclist": 2}
_HEAT_RADIUS = (0.83, 0.5, 0.5)  # sigma in cells of the heatmap's Gaussian by class
_BOX_HEADS = {"offset": 2.0, "height": 1.0, "size": 2.0, "rotation": 1.0}


@dataclass(frozen=True, slots=True)
class Sample:
    """An object cut out of a scene for ground-truth sampling: its points, box and class."""

    points: NDArray[np.float32]
    box: NDArray[np.float64]
    name: str


def samples(frames: Sequence[Frame]) -> list[Sample]:
    """Every labelled object with enough points (Yan et al. 2018, SECOND, section 3.2)."""
    found = []
    for frame in frames:
        assert frame.labels is not None
        owned = inside(frame.points, frame.labels.boxes)
        for box, name, mask in zip(frame.labels.boxes, frame.labels.classes, owned, strict=True):
            if mask.sum() >= LEAST_POINTS:
                found.append(Sample(frame.points[mask], box, name))
    return found


def augment(frame: Frame, bank: Sequence[Sample], random: np.random.Generator, pasted: int = 6) -> Frame:
    """Paste sampled objects where there is room, then flip, rotate and scale the whole scene."""
    assert frame.labels is not None
    points, boxes, names = frame.points.copy(), np.array(frame.labels.boxes, np.float64), list(frame.labels.classes)
    for index in random.permutation(len(bank))[:pasted]:
        new = bank[index]
        apart = np.hypot(*(boxes[:, :2] - new.box[:2]).T) if len(boxes) else np.array([np.inf])
        reach = np.hypot(*boxes[:, 3:5].T) / 2 if len(boxes) else np.zeros(1)
        if (apart > reach + np.hypot(*new.box[3:5]) / 2).all():
            points = np.concatenate([points[~inside(points, new.box[None])[0]], new.points])
            boxes, names = np.concatenate([boxes, new.box[None]]), [*names, new.name]
    if random.random() < 0.5:
        points[:, 1] *= -1
        boxes[:, [1, 6]] *= -1
    angle, scale = random.uniform(-np.pi / 8, np.pi / 8), random.uniform(0.95, 1.05)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points[:, :2] = points[:, :2] @ turn
    points[:, :3] *= scale
    boxes[:, :2] = boxes[:, :2] @ turn
    boxes[:, :6] *= scale
    boxes[:, 6] += angle
    counted = inside(points, boxes).sum(1)
    return Frame(frame.name, points, labels(boxes, tuple(names), counted))


def targets(frame: Frame, settings: dict[str, Any], shape: tuple[int, int]) -> dict[str, NDArray[np.float32]]:
    """What the heads should answer on a map of `shape` [H, W], and `weight` [H, W] of the box heads.

    Cells near a centre share its box (weight: the heatmap's Gaussian where it is above 0.3). `rotation` is (sin 2θ,
    cos 2θ), which does not care for the box's front; `direction` says whether cos θ < 0.
    """
    height, width = shape
    assert frame.labels is not None
    heat = np.zeros((3, height, width), np.float32)
    weight = np.zeros((height, width), np.float32)
    boxes = {"offset": 2, "height": 1, "size": 3, "rotation": 2, "direction": 1}
    result = {name: np.zeros((n, height, width), np.float32) for name, n in boxes.items()}
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    counted = zip(frame.labels.boxes, frame.labels.classes, frame.labels.num_points, strict=True)
    for box, name, points in counted:
        column, row = ((box[i] - settings["origin"][i]) / settings["cell"] for i in (0, 1))
        if name not in CLASS_OF or points < LEAST_POINTS or not (0 <= column < width and 0 <= row < height):
            continue
        kind = CLASS_OF[name]
        # the cell that holds the centre is the peak
        far = (rows - np.floor(row) - 0.5) ** 2 + (columns - np.floor(column) - 0.5) ** 2
        gauss = np.exp(-far / (2 * _HEAT_RADIUS[kind] ** 2)).astype(np.float32)
        heat[kind] = np.maximum(heat[kind], gauss)
        near = (gauss > 0.3) & (gauss > weight)
        weight[near] = gauss[near]
        theta = box[6]
        axis = 0.5 * np.arctan2(np.sin(2 * theta), np.cos(2 * theta))
        result["offset"][:, near] = np.stack([(column - columns)[near], (row - rows)[near]])
        result["height"][:, near] = box[2]
        result["size"][:, near] = np.log(box[3:6])[:, None]
        result["rotation"][:, near] = np.array([[np.sin(2 * theta)], [np.cos(2 * theta)]])
        result["direction"][:, near] = float(np.cos(theta - axis) < 0)
    return {"heatmap": heat, "weight": weight, **result}


def losses(heads: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Penalty-reduced focal loss of the heatmap (Zhou et al. 2019, Objects as Points, eq. 1), L1 of the box heads."""
    logits, heat = heads["heatmap"], wanted["heatmap"]
    centre = heat >= 0.999
    score = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    hit = ((1 - score) ** 2 * F.logsigmoid(logits))[centre].sum()
    miss = ((1 - heat) ** 4 * score**2 * F.logsigmoid(-logits))[~centre].sum()
    parts = {"heatmap": -(hit + miss) / centre.sum().clamp(min=1)}
    weight = wanted["weight"][:, None]
    total = weight.sum().clamp(min=1)
    for name, share in _BOX_HEADS.items():
        parts[name] = share * ((heads[name] - wanted[name]).abs() * weight).sum() / total
    turned = F.binary_cross_entropy_with_logits(heads["direction"], wanted["direction"], reduction="none")
    parts["direction"] = 0.2 * (turned * weight).sum() / total
    return parts


def collate(prepared: Sequence[tuple[NDArray[Any], ...]]) -> tuple[Tensor, ...]:
    """One batch from several frames' unpadded inputs: rows are stacked, tables shifted to where their rows now lie.

    Pillars [1, F, P, points] and one table, or voxels [N1, F] and the tables of a sparse encoder.
    """
    if len(prepared[0]) == 2:
        counts = [p[0].shape[2] for p in prepared]
        rows = torch.from_numpy(np.concatenate([p[0] for p in prepared], 2))
        return rows, _shifted([p[1] for p in prepared], counts)
    levels = [[len(p[0]) for p in prepared], [len(p[2]) for p in prepared], [len(p[4]) for p in prepared]]
    source = (0, 0, 1, 1, 2, 2)
    features = torch.from_numpy(np.concatenate([p[0] for p in prepared]))
    return features, *(_shifted([p[i + 1] for p in prepared], levels[source[i]]) for i in range(6))


def _shifted(tables: list[NDArray[np.int64]], counts: list[int]) -> Tensor:
    """Tables joined; an index that meant "none" (its frame's count) becomes the total."""
    starts = np.cumsum([0, *counts])
    joined = [np.where(t == n, starts[-1], t + start) for t, n, start in zip(tables, counts, starts[:-1], strict=True)]
    return torch.from_numpy(np.concatenate(joined))
