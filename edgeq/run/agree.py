"""Do an artefact and the folder's numbers hold what the program does? Hashes say that files are whole, not that they agree."""

from __future__ import annotations

from torch.fx import Node

from edgeq import backends
from edgeq.graph.integer import DEQUANTIZE, tensor_qparams
from edgeq.graph.package import QuantizedModel
from edgeq.spec import Artifact, EdgeqError


def agree(model: QuantizedModel, artifact: Artifact) -> None:
    """Compare an artefact's weights, scales and biases, and the numbers of manifest.json and qparams.json, with the program's.

    Raises:
        EdgeqError: they are others, whatever the hashes say.
    """
    for op in model.integers.ops.values():
        told = model.qparams.get(op.layer)
        if op.kind != "requantize" and told is not None and told != op.output_qparams:
            raise EdgeqError(
                f"{model.folder}: qparams.json has other numbers for {op.layer} than program.pt2; quantize again"
            )
    results = model.integers.module.graph.output_node().args[0]
    assert isinstance(results, (tuple, list))
    for info, node in zip(model.outputs, results, strict=True):
        made = tensor_qparams(node) if isinstance(node, Node) and node.target is DEQUANTIZE else None
        if info.qparams != made:
            raise EdgeqError(
                f"{model.folder}: manifest.json has other numbers for {info.name} than program.pt2; quantize again"
            )
    if wrong := backends.differing(artifact.backend, artifact.path, model.integers):
        raise EdgeqError(
            f"{artifact.path}: does not hold the program's numbers: {wrong[0]}; "
            f"run edgeq export {model.folder} --to {artifact.backend} again"
        )
