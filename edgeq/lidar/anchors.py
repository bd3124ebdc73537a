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


# where the two facings of the direction logits part: headings in [π/4, π/4 + π) are bin 0
PARTING = np.pi / 4


def anchor_head(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The head that a meta.json describes by `classes`, `anchors`, `range`, `grid_xy` and `out_stride`, as `decode` takes it.

    Anchors stand from border to border: the first column on the range's lower bound, the last on its upper.
    """
    low, high, stride = meta["range"][:3], meta["range"][3:], meta["out_stride"]
    anchors = [
        [length, width, height, anchor["bottom_z"] + height / 2, heading]
        for anchor in meta["anchors"]
        for length, width, height in [anchor["lwh"]]
        for heading in anchor["rot"]
    ]
    return {
        "kind": "anchors",
        "outputs": ["cls", "box", "dir"],
        "classes": list(meta["classes"]),
        "anchors": anchors,
        "columns": [low[0], high[0], meta["grid_xy"][0] // stride],
        "rows": [low[1], high[1], meta["grid_xy"][1] // stride],
        "score": 0.1,
        "overlap": 0.01,
        "limit": 500,
    }


@dataclass(frozen=True, slots=True)
class Found:
    """K detections, best first: boxes [K, 7], scores [K], classes, and the anchor, row and column each came from [K]."""

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]
    anchors: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]


def decode(heads: Mapping[str, NDArray[Any]], head: Mapping[str, Any]) -> Found:
    """Detections from one frame's maps `cls` [1, A · classes, H, W], `box` [1, A · 7, H, W] and `dir` [1, A · 2, H, W].

    head: `classes`, in the order of the class logits; `anchors`, A of (length, width, height, z of the centre, heading)
    in the order of the channels; `columns` and `rows`, first and last coordinate in metres and number of the anchors
    along x and y; `score`, below which detections are dropped; `overlap`, the BEV IoU above which the lesser of two
    goes, whatever their classes; `limit`, detections kept.

    Raises:
        ValueError: a map's shape does not fit the head.
    """
    count, grid = len(head["anchors"]), (head["rows"][2], head["columns"][2])
    for name, per_anchor in (("cls", len(head["classes"])), ("box", 7), ("dir", 2)):
        if heads[name].shape != (1, count * per_anchor, *grid):
            raise ValueError(f"{name} must be of shape {[1, count * per_anchor, *grid]}, not {list(heads[name].shape)}")
    cls, box, direction = heads["cls"][0], heads["box"][0], heads["dir"][0]
    logits = cls.reshape(count, -1, *grid).astype(np.float64)
    best = logits.max(1)
    anchor, row, column = np.nonzero(best >= np.log(head["score"] / (1 - head["score"])))
    scores = 1 / (1 + np.exp(-best[anchor, row, column]))
    labels = logits[anchor, :, row, column].argmax(1)
    moves = box.reshape(count, 7, *grid)[anchor, :, row, column].astype(np.float64)
    facing = direction.reshape(count, 2, *grid)[anchor, :, row, column].argmax(1)
    boxes = _move(head, anchor, row, column, moves, facing)

    finite = np.isfinite(boxes).all(1)
    kept = np.flatnonzero(finite)[nms(boxes[finite], scores[finite], head["overlap"], head["limit"])]
    return Found(boxes[kept], scores[kept], labels[kept], anchor[kept], row[kept], column[kept])


def _move(
    head: Mapping[str, Any],
    anchor: NDArray[np.intp],
    row: NDArray[np.intp],
    column: NDArray[np.intp],
    moves: Floats,
    facing: NDArray[np.intp],
) -> Floats:
    """The boxes [K, 7] that `moves` [K, 7] make of K anchors; `facing` [K] picks one of the two directions."""
    length, width, height, z, heading = np.array(head["anchors"])[anchor].T
    boxes = np.empty_like(moves)
    diagonal = np.hypot(length, width)
    boxes[:, 0] = moves[:, 0] * diagonal + np.linspace(*head["columns"])[column]
    boxes[:, 1] = moves[:, 1] * diagonal + np.linspace(*head["rows"])[row]
    boxes[:, 2] = moves[:, 2] * height + z
    with np.errstate(over="ignore"):
        boxes[:, 3:6] = np.exp(moves[:, 3:6]) * np.stack([length, width, height], 1)
    boxes[:, 6] = wrap(wrap(moves[:, 6] + heading, PARTING, np.pi) + np.pi * facing)
    return boxes
