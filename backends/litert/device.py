"""How a .tflite runs on a device that is not this process: by LiteRT's Python package there, and a script of ours."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor

from edgeq import runners
from edgeq.backends.litert import run
from edgeq.spec import DeviceInfo, EdgeqError, Job

SCRIPT = Path(runners.__file__).parent / "litert_runner.py"
PROFILER = Path(run.__file__).parent / "profiler.py"
PYTHON = ("aarch64-linux", "x86_64-linux", "armv7l-linux", "arm64-apple")  # where LiteRT has wheels, or had

# numpy's own threads and the order of hashes would make each start, and so each count of instructions, another
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


def job(artifact: Path, info: DeviceInfo, kernels: str = "") -> Job:
    """The Python runner with `artifact`.

    kernels: `xnnpack` (the default), `builtin` or `reference`. EDGEQ_DEVICE_PYTHON names the Python of boards that have LiteRT
    in another one than python3.

    Raises:
        EdgeqError: the device runs no Python with LiteRT.
    """
    if info.abi not in PYTHON:
        raise EdgeqError(
            f"{info.name} runs {info.abi} programs, and LiteRT comes as a Python package for {', '.join(PYTHON)} only; "
            "verify on emulated:cortex-a76, whose kernels are the same (its benchmark_model, for profile, tells no outputs)"
        )
    chosen = kernels or "xnnpack"
    python = "python3" if info.emulated else os.environ.get("EDGEQ_DEVICE_PYTHON", "python3")
    return Job(
        {"model.tflite": artifact, "litert_runner.py": SCRIPT, "profiler.py": PROFILER},
        (python, "litert_runner.py", "--model", "model.tflite", "--kernels", chosen),
        dict(ENVIRONMENT),
    )


def encode(artifact: Path, inputs: Sequence[Tensor], kernels: str = "") -> tuple[Tensor, ...]:
    """Flat inputs of the program as the file takes them: floats quantized where it takes int8.

    Raises:
        EdgeqError: see edgeq.backends.litert.run.encode.
    """
    return run.encode(artifact, run.ports(artifact)[0], inputs, cast(run.Kernels, kernels or "xnnpack"))


def decode(artifact: Path, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the file gives as the program's outputs: int8 ones dequantized."""
    return run.decode(run.ports(artifact)[1], outputs)
