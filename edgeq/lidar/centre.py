"""Centre head: what its maps say about boxes (Yin et al. 2021, CenterPoint, arXiv 2006.11275, section 4). Numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .boxes import nms

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEAST_LOGIT = -700.0  # exp(709) is the greatest that float64 holds; no score asks for less


@dataclass(frozen=True, slots=True)
class Found:
    """K detections, best first: boxes [K, 7], scores [K], classes, rows and columns of their peaks [K]."""

    boxes: Floats
    scores: Floats
    classes: Integers
    rows: Integers
    columns: Integers


def decode(heads: Mapping[str, NDArray[Any]], head: Mapping[str, Any]) -> Found:
    """Boxes from one frame's `heads` [1, n, H, W]: peaks of the heatmap above `score`, then rotated NMS within a class.

    head: `classes`; `origin`, x and y of the map's corner, and `cell`, the edge of a heatmap cell, in metres; `score`;
    `overlap`, the BEV IoU above which the lesser of two goes; `limit`, detections kept of each class. A peak whose box is
    not finite is no detection.
    """
    logits = heads["heatmap"][0].astype(np.float64)
    scores = 1 / (1 + np.exp(-np.maximum(logits, LEAST_LOGIT)))
    bordered = np.pad(scores, ((0, 0), (1, 1), (1, 1)))
    height, width = scores.shape[1:]
    around = np.max([bordered[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    kind, row, column = np.nonzero((scores >= around) & (scores > head["score"]))
    boxes = _boxes({k: v[0, :, row, column].astype(np.float64) for k, v in heads.items()}, row, column, head)
    finite = np.isfinite(boxes).all(1)
    boxes, kind, row, column = boxes[finite], kind[finite], row[finite], column[finite]
    found = scores[kind, row, column]
    order = np.argsort(-found, kind="stable")
    kept = [
        of_class[nms(boxes[of_class], found[of_class], head["overlap"], head["limit"])]
        for of_class in (order[kind[order] == c] for c in range(len(scores)))
    ]
    best = np.concatenate(kept)
    best = best[np.argsort(-found[best], kind="stable")]
    return Found(boxes[best], found[best], kind[best], row[best], column[best])


def _boxes(answers: Mapping[str, Floats], row: Integers, column: Integers, head: Mapping[str, Any]) -> Floats:
    """Boxes [K, 7] from the answers [K, n] at K peaks."""
    axis = 0.5 * np.arctan2(answers["rotation"][:, 0], answers["rotation"][:, 1])
    columns = [
        (column + 0.5 + answers["offset"][:, 0]) * head["cell"] + head["origin"][0],
        (row + 0.5 + answers["offset"][:, 1]) * head["cell"] + head["origin"][1],
        answers["height"][:, 0],
        *np.exp(np.clip(answers["size"], -3, 3)).T,
        axis + np.pi * (answers["direction"][:, 0] > 0),
    ]
    return np.stack(columns, 1)
