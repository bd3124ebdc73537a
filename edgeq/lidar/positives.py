"""Where a detector's float answers are: the positives that the task-guided loss of LiDAR-PTQ looks at.

Zhou et al. 2024, LiDAR-PTQ (arXiv 2401.15865), section 3.3: boxes above a score threshold that survive NMS name the
cells at which the quantized network must answer like the float one. No labels are involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeq.lidar import anchors, centre, pipeline


def positives(outputs: Sequence[Tensor], head: Mapping[str, Any]) -> tuple[Tensor, ...] | None:
    """One mask per output (float32, of its shape, 1 at positives); None for a frame that has none.

    outputs: the float network's heads of one frame [1, n, H, W], in the order of `head["outputs"]`. head: the `head`
    part of a pipeline, `centre` or `anchors`. At a centre head's peak every head is looked at; of an anchor head the
    channels of the anchors that became boxes.

    Raises:
        ValueError: the head lacks something.
    """
    head = pipeline.part({"head": head}, "head")
    heads = {name: x.detach().numpy() for name, x in zip(head["outputs"], outputs, strict=True)}
    masks = {name: np.zeros(values.shape, np.float32) for name, values in heads.items()}
    if head["kind"] == "centre":
        found = centre.decode(heads, head)
        for mask in masks.values():
            mask[0, :, found.rows, found.columns] = 1
    else:
        _mark_anchors(heads, head, masks)
    if not any(mask.any() for mask in masks.values()):
        return None
    return tuple(torch.from_numpy(mask) for mask in masks.values())


def _mark_anchors(
    heads: Mapping[str, NDArray[Any]], head: Mapping[str, Any], masks: Mapping[str, NDArray[np.float32]]
) -> None:
    """The channels of every anchor that became a box; channels are anchor-major."""
    found = anchors.decode(heads, head)
    count = len(head["anchors"])
    for mask in masks.values():
        by_anchor = mask.reshape(count, -1, *mask.shape[2:])
        by_anchor[found.anchors, :, found.rows, found.columns] = 1
