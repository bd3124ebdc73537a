"""The centre head's answers as boxes: decoding, in numpy only (Yin et al. 2021, CenterPoint, arXiv 2006.11275, section 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from edgeq.lidar.boxes import nms
except ImportError:  # in a bundle this file lies beside boxes.py
    from boxes import nms

Floats = NDArray[np.float32]


def decode(heads: dict[str, Floats], settings: dict[str, Any]) -> tuple[NDArray[np.float64], Floats, NDArray[np.int64]]:
    """Boxes [K, 7], scores [K] and class indices [K] from one frame's heads [1, n, H, W], best first.

    Peaks of the heatmap above `score`, then rotated NMS (IoU `overlap`, at most `limit`) within each of `classes`.
    settings: also `origin`, x and y of the map's corner, and `cell`, the edge of a heatmap cell, in metres.
    """
    logits = heads["heatmap"][0].astype(np.float64)
    scores = 1 / (1 + np.exp(-logits))
    bordered = np.pad(scores, ((0, 0), (1, 1), (1, 1)))
    height, width = scores.shape[1:]
    around = np.max([bordered[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)
    kind, row, column = np.nonzero((scores >= around) & (scores > settings["score"]))
    found = scores[kind, row, column]
    order = np.argsort(-found, kind="stable")[: settings["limit"] * len(settings["classes"])]
    kind, row, column, found = kind[order], row[order], column[order], found[order]
    answers = {name: head[0, :, row, column].astype(np.float64) for name, head in heads.items()}
    axis = 0.5 * np.arctan2(answers["rotation"][:, 0], answers["rotation"][:, 1])
    boxes = np.concatenate(
        [
            ((column + 0.5 + answers["offset"][:, 0]) * settings["cell"] + settings["origin"][0])[:, None],
            ((row + 0.5 + answers["offset"][:, 1]) * settings["cell"] + settings["origin"][1])[:, None],
            answers["height"],
            np.exp(np.clip(answers["size"], -3, 3)),
            (axis + np.pi * (answers["direction"][:, 0] > 0))[:, None],
        ],
        axis=1,
    )
    kept = np.concatenate(
        [np.flatnonzero(kind == c)[nms(boxes[kind == c], found[kind == c], settings["overlap"], settings["limit"])]
         for c in range(len(settings["classes"]))]
    ).astype(np.int64)
    kept = kept[np.argsort(-found[kept], kind="stable")]
    return boxes[kept], found[kept].astype(np.float32), kind[kept].astype(np.int64)
