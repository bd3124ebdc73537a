"""How a .pte runs on a device that is not this process: by the C++ runner and the runtime's shared libraries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from edgeq.backends.executorch.pte import check_pte
from edgeq.runners.build import installed
from edgeq.spec import DeviceInfo, Job


def job(artifact: Path, info: DeviceInfo, kernels: str = "") -> Job:
    """The runner for `info.abi` with `artifact`; ExecuTorch has one kernel set.

    Raises:
        EdgeqError: the runner is not built for this device, or the artefact is damaged.
    """
    check_pte(artifact)
    files = installed("executorch_runner", info.abi)
    return Job({"model.pte": artifact, **files}, ("executorch_runner", "--model", "model.pte"))


def encode(artifact: Path, inputs: Sequence[Tensor], kernels: str = "") -> tuple[Tensor, ...]:
    """Flat inputs of the program as the file takes them: as they are."""
    return tuple(x.detach().contiguous() for x in inputs)


def decode(artifact: Path, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the file gives as the program's outputs: as they are."""
    return tuple(outputs)
