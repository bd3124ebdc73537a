"""The detectors that edgeq ships: network, pipeline settings and trained weights by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from edgeq.lidar import pipeline
from edgeq.lidar.frame import Detections
from edgeq.lidar.networks import CenterPointPillar, CenterPointVoxel
from edgeq.lidar.tally import Tally
from edgeq.spec import EdgeqError, EdgeqWarning

WEIGHTS: Final = Path(__file__).parent / "weights"
Predict = Callable[..., Any]

_RANGE = [0.0, -25.6, -3.0, 51.2, 25.6, 1.0]
_CENTRE: dict[str, Any] = {
    "kind": "centre",
    "outputs": ["heatmap", "offset", "height", "size", "rotation", "direction"],
    "classes": ["Vehicle", "Pedestrian", "Cyclist"],
    "origin": [0.0, -25.6],
    "cell": 0.8,
    "score": 0.1,
    "overlap": 0.2,
    "limit": 100,
}
_PILLARS: dict[str, Any] = {
    "kind": "pillars",
    "point_range": _RANGE,
    "pillar_size": [0.2, 0.2],
    "max_points": 16,
    "max_pillars": 10240,
    # x, y, z, intensity, then less the pillar's mean, then less the cell's centre: each brought near [-1, 1]
    "feature_weight": [1 / 25.6, 1 / 25.6, 0.5, 2.0, 5.0, 5.0, 1.0, 10.0, 10.0, 0.5],
    "feature_bias": [-1.0, 0.0, 0.5, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
}
_VOXELS: dict[str, Any] = {
    "kind": "voxels",
    "point_range": _RANGE,
    "grid": [256, 256, 20],
    "limits": [12288, 10240, 6144],
}

# layers on both sides of the scatter, where a bundle cuts a pillar detector in two
SPLIT: Final = {"rows": "encoder/reshape", "image": "permute"}


@dataclass(frozen=True, slots=True)
class Detector:
    """A network and the pipeline around it; `pipeline` is what pipeline.json says."""

    name: str
    network: Callable[[], nn.Module]
    pipeline: dict[str, Any]

    def trained(self) -> nn.Module:
        """The network with the weights edgeq ships, ready to run.

        Raises:
            EdgeqError: the weights are not there.
        """
        file = WEIGHTS / f"{self.name}.safetensors"
        if not file.is_file():
            raise EdgeqError(f"{file}: no weights; train them with tools/train_detector.py {self.name}")
        network = self.network()
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()})
        return network.eval()

    def detect(
        self, points: NDArray[np.float32], predict: Predict, padded: bool = True, tally: Tally | None = None
    ) -> Detections:
        """Boxes in one cloud by `predict(*inputs)`, which answers with the heads by name or in their order.

        What the static limits leave out is counted in `tally`; without one it is warned of.
        """
        prepared = pipeline.prepare(points, self.pipeline, padded)
        if tally is not None:
            tally.add(prepared)
        elif any(prepared.dropped):  # the same words for every frame, so that they are heard once
            warnings.warn(
                f"{self.name}: a cloud holds more {self.pipeline['encoder']['kind']} than the pipeline's limits, and those "
                "with the fewest points are left out; detect(…, tally=Tally()) counts them",
                EdgeqWarning,
                stacklevel=2,
            )
        with torch.no_grad():
            answer = predict(*(torch.from_numpy(a) for a in prepared.inputs))
        return self.boxes(tuple(answer.values()) if isinstance(answer, dict) else answer)

    def boxes(self, heads: Sequence[Tensor]) -> Detections:
        """Boxes from the network's heads of one frame, in their order."""
        named = dict(zip(self.pipeline["head"]["outputs"], (h.detach().numpy() for h in heads), strict=True))
        return Detections(*pipeline.boxes(named, self.pipeline))


DETECTORS: Final[dict[str, Detector]] = {
    d.name: d
    for d in (
        Detector("centerpoint_pillar", CenterPointPillar, {"encoder": _PILLARS, "head": _CENTRE, "split": SPLIT}),
        Detector("centerpoint_voxel", CenterPointVoxel, {"encoder": _VOXELS, "head": _CENTRE}),
    )
}
