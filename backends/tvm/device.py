"""How a compiled library runs on a device that is not this process: by the C++ runner and TVM's runtime library.

What is compiled for Hexagon is a program that runs itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from edgeq.backends.tvm.run import check_library
from edgeq.runners.build import installed
from edgeq.spec import DeviceInfo, EdgeqError, Job

# e_machine of an ELF file (elf.h) → the machine's name in an ABI
MACHINES = {62: "x86_64", 183: "aarch64", 164: "hexagon"}


def job(artifact: Path, info: DeviceInfo, kernels: str = "") -> Job:
    """The runner for `info.abi` with `artifact`; TVM has one kernel set, in the artefact.

    Raises:
        EdgeqError: the runner is not built for this device, or the library is not for it, or is damaged.
    """
    check_library(artifact)
    with artifact.open("rb") as file:
        (code,) = struct.unpack_from("<18xH", file.read(20))
    machine = MACHINES.get(code, f"machine {code}")
    if machine != info.abi.split("-")[0]:
        raise EdgeqError(f"{artifact} is compiled for {machine}, and {info.name} runs {info.abi} programs")
    if machine == "hexagon":
        return Job({"model.elf": artifact}, ("model.elf",))
    files = installed("tvm_runner", info.abi)
    return Job({"model.so": artifact, **files}, ("tvm_runner", "--model", "model.so"))


def encode(artifact: Path, inputs: Sequence[Tensor], kernels: str = "") -> tuple[Tensor, ...]:
    """Flat inputs of the program as the library takes them: as they are."""
    return tuple(x.detach().contiguous() for x in inputs)


def decode(artifact: Path, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What the library gives as the program's outputs: as they are."""
    return tuple(outputs)
