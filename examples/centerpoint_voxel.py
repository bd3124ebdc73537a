"""CenterPoint with voxels on synthetic lidar scenes: vehicles, pedestrians and cyclists; weights come with edgeq.

The whole network is one graph: a sparse 3D encoder (each convolution a gather by a neighbour table and one linear),
backbone, neck and centre heads. For a detector of your own copy this file; `PIPELINE` says how points become inputs and
heads become boxes.
"""

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn

from edgeq.lidar import synthetic
from edgeq.lidar.detectors import DETECTORS
from edgeq.lidar.positives import positives as task_guided

DETECTOR = DETECTORS["centerpoint_voxel"]
PIPELINE = DETECTOR.pipeline
PREPROCESSING = {"pipeline": PIPELINE}


def model() -> nn.Module:
    """The detector with its trained weights, 1.2 M parameters."""
    return DETECTOR.trained()


def example_inputs() -> tuple[Tensor, ...]:
    """Voxels float32 [12288, 8], neighbour tables int64 [N, 27] and the BEV table int64 [20480] of one scene."""
    return next(calibration())


def calibration() -> Iterator[tuple[Tensor, ...]]:
    """64 scenes that no evaluation sees; EDGEQ_FRAMES changes how many."""
    return synthetic.calibration(DETECTOR)


def positives(outputs: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    """Where the float network's final boxes are, one mask per head: the positives of LiDAR-PTQ."""
    return task_guided(outputs, PIPELINE["head"])


def evaluate(predict: Callable[..., tuple[Tensor, ...]]) -> dict[str, float]:
    """AP (R40, BEV) by class on 20 unseen scenes (EDGEQ_LIMIT changes how many), and agreement with the float boxes."""
    return synthetic.evaluate(DETECTOR, predict)
