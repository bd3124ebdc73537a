"""The vocabulary: plain frozen data that every stage passes on. Imports neither torch nor any runtime."""

from edgeq.spec.artifact import Artifact, OpPlacement
from edgeq.spec.device import DeviceInfo, Job
from edgeq.spec.errors import EdgeqError, EdgeqWarning, Progress
from edgeq.spec.grid import CHANNEL, TENSOR, Grid, QParams, TensorInfo, Tile
from edgeq.spec.latency import InstructionReport, LatencyReport, OpLatency, RowKind, Spread
from edgeq.spec.plan import QuantPlan
from edgeq.spec.precision import Precision, precision  # the function is what `edgeq.spec.precision` names from here on
from edgeq.spec.recipe import Recipe, Step
from edgeq.spec.target import ANY, ANY_LAYERS, INTEGERS, LAYERS, WEIGHTS, OpSupport, Pair, Status, Target

__all__ = [
    "ANY",
    "ANY_LAYERS",
    "CHANNEL",
    "INTEGERS",
    "LAYERS",
    "TENSOR",
    "WEIGHTS",
    "Artifact",
    "DeviceInfo",
    "EdgeqError",
    "EdgeqWarning",
    "Grid",
    "InstructionReport",
    "Job",
    "LatencyReport",
    "OpLatency",
    "OpPlacement",
    "OpSupport",
    "Pair",
    "Precision",
    "Progress",
    "QParams",
    "QuantPlan",
    "Recipe",
    "RowKind",
    "Spread",
    "Status",
    "Step",
    "Target",
    "TensorInfo",
    "Tile",
    "precision",
]
