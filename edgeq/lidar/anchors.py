"""Anchor head: what its three maps say about boxes (SECOND, Yan et al. 2018, sections 3.1 and 3.2). Numpy alone.

The head looks at A anchors in each cell of its grid: a box of a class's usual size at one of two headings. For each it
gives one logit per class, seven numbers that move the anchor, and two logits that say which way round the box faces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .boxes import nms, wrap

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AnchorHead:
    """What decoding has to know.

    classes: names, in the order of the class logits.
    anchors: (length, width, height, z of the centre, heading), one per anchor of a cell, in the order of the channels.
    x, y: coordinates of the anchors along the grid's columns and rows, in metres.
    score: detections below are dropped. overlap: BEV overlap above which the lesser of two detections is dropped,
    whatever their classes. limit: detections kept at most.
    """

    classes: tuple[str, ...]
    anchors: tuple[tuple[float, float, float, float, float], ...]
    x: Floats
    y: Floats
    score: float = 0.1
    overlap: float = 0.01
    limit: int = 500


# where the two facings of the direction logits part: headings in [π/4, π/4 + π) are bin 0
PARTING = np.pi / 4


def anchor_head(meta: Mapping[str, Any]) -> AnchorHead:
    """The head that a meta.json describes: `classes`, `anchors`, `range`, `grid_xy` and `out_stride`.

    Anchors stand from border to border: the first column on the range's lower bound, the last on its upper.
    """
    low, high, stride = meta["range"][:3], meta["range"][3:], meta["out_stride"]
    columns, rows = (cells // stride for cells in meta["grid_xy"])
    anchors = [
        (length, width, height, anchor["bottom_z"] + height / 2, heading)
        for anchor in meta["anchors"]
        for length, width, height in [anchor["lwh"]]
        for heading in anchor["rot"]
    ]
    x, y = np.linspace(low[0], high[0], columns), np.linspace(low[1], high[1], rows)
    return AnchorHead(tuple(meta["classes"]), tuple(anchors), x, y)


def decode(
    cls: NDArray[Any], box: NDArray[Any], direction: NDArray[Any], head: AnchorHead
) -> tuple[Floats, Floats, tuple[str, ...]]:
    """Head maps of one frame → boxes [K, 7], scores [K] and K class names, best first.

    cls: [A · classes, H, W] logits; box: [A · 7, H, W]; direction: [A · 2, H, W] logits; anchor-major channels.

    Raises:
        ValueError: a map's shape does not fit the head.
    """
    count, grid = len(head.anchors), (len(head.y), len(head.x))
    for name, values, per_anchor in (("cls", cls, len(head.classes)), ("box", box, 7), ("direction", direction, 2)):
        if values.shape != (count * per_anchor, *grid):
            raise ValueError(f"{name} must have the shape {[count * per_anchor, *grid]}, not {list(values.shape)}")
    logits = cls.reshape(count, -1, *grid).astype(np.float64)
    best = logits.max(1)
    anchor, row, column = np.nonzero(best >= np.log(head.score / (1 - head.score)))
    scores = 1 / (1 + np.exp(-best[anchor, row, column]))
    labels = logits[anchor, :, row, column].argmax(1)
    moves = box.reshape(count, 7, *grid)[anchor, :, row, column].astype(np.float64)
    facing = direction.reshape(count, 2, *grid)[anchor, :, row, column].argmax(1)
    boxes = _move(head, anchor, row, column, moves, facing)

    finite = np.isfinite(boxes).all(1)
    boxes, scores, labels = boxes[finite], scores[finite], labels[finite]
    kept = nms(boxes, scores, head.overlap, head.limit)
    return boxes[kept], scores[kept], tuple(head.classes[i] for i in labels[kept])


def _move(
    head: AnchorHead,
    anchor: NDArray[np.intp],
    row: NDArray[np.intp],
    column: NDArray[np.intp],
    moves: Floats,
    facing: NDArray[np.intp],
) -> Floats:
    """The boxes [K, 7] that `moves` [K, 7] make of K anchors; `facing` [K] picks one of the two directions."""
    length, width, height, z, heading = np.array(head.anchors)[anchor].T
    boxes = np.empty_like(moves)
    diagonal = np.hypot(length, width)
    boxes[:, 0] = moves[:, 0] * diagonal + head.x[column]
    boxes[:, 1] = moves[:, 1] * diagonal + head.y[row]
    boxes[:, 2] = moves[:, 2] * height + z
    with np.errstate(over="ignore"):
        boxes[:, 3:6] = np.exp(moves[:, 3:6]) * np.stack([length, width, height], 1)
    boxes[:, 6] = wrap(wrap(moves[:, 6] + heading, PARTING, np.pi) + np.pi * facing)
    return boxes
