"""Where an artefact runs: in this process, or on a device by its backend's job."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from edgeq import backends
from edgeq.device import Device, Server
from edgeq.devices.host import Host
from edgeq.run import remote
from edgeq.run.remote import UNTIMED, Outcome, Timing
from edgeq.spec import Artifact, DeviceInfo, EdgeqError, Job

Batch = Sequence[Tensor]


class Place:
    """A device, or this process where the device is None or the host."""

    def __init__(self, device: Device | None = None) -> None:
        """Ask the device what it is.

        Raises:
            DeviceLost: it does not answer.
        """
        self.device = None if isinstance(device, Host) else device
        self.info: DeviceInfo = (device or Host()).describe()

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.info.name

    def lacks(self, backend: str) -> str:
        """Why artefacts of `backend` do not run here, in words; empty where they do."""
        if self.device is None:
            return "" if backend not in backends.VARIANTS else backends.runs_here(backend).removeprefix("no: ")
        runtime = backends.RUNTIMES[backends.runtime_of(backend)]
        if isinstance(self.device, Server) and self.device.runtime != runtime.name:
            return f"{self.name} runs {backends.title(self.device.runtime)}'s artefacts alone"
        machine = _machine(self.info)
        if machine == "unknown":  # a server with a bare runtime does not tell; what is not for it will not load
            return ""
        variant = backends.VARIANTS.get(backend)
        if variant is not None:
            if variant.machine != machine:
                return f"{backend} is compiled for {variant.machine}, and {self.name} is {self.info.abi}"
            told = not isinstance(self.device, Server)  # a server names its processor, not what that has
            absent = [f for f in variant.features if told and f not in self.info.features]
            return f"{backend} needs {', '.join(absent)}, which {self.info.model} does not have" if absent else ""
        if runtime.apple:
            return (
                "" if self.in_process(backend) else f"{runtime.title} runs on Apple's systems, and {self.name} is none"
            )
        if runtime.compiled and machine != _machine(Host().describe()):
            return f"{backend} is compiled for this host, and {self.name} is {self.info.abi}"
        if machine == "hexagon":
            fitting = " or ".join(f"--to {name}" for name, v in backends.VARIANTS.items() if v.machine == machine)
            return f"{backend} does not run on Hexagon; export {fitting}"
        return ""

    def job(self, artifact: Artifact, kernels: str = "") -> Job:
        """How the device runs `artifact`.

        Raises:
            EdgeqError: it does not; or a runner is not built: with the command that does it.
        """
        why = self.lacks(artifact.backend)
        if why:
            raise EdgeqError(why)
        if isinstance(self.device, Server):
            return Job({artifact.path.name: artifact.path}, ())
        made: Job = self._part(artifact.backend).job(artifact.path, self.info, kernels)
        return made

    def run(
        self,
        artifact: Artifact,
        batches: Sequence[Batch],
        *,
        kernels: str = "",
        threads: int = 1,
        timing: Timing = UNTIMED,
        count: bool = False,
    ) -> Outcome:
        """Run on the device; outputs are the program's, not the file's.

        Raises:
            DeviceLost, EdgeqError: see edgeq.run.remote.execute.
        """
        assert self.device is not None
        part = self._part(artifact.backend)
        taken = [part.encode(artifact.path, batch, kernels) for batch in batches]
        job = self.job(artifact, kernels)
        found = remote.execute(self.device, job, taken, threads=threads, timing=timing, count=count)
        outputs = tuple(part.decode(artifact.path, given) for given in found.outputs)
        return dataclasses.replace(found, outputs=outputs)

    def answers(
        self, artifact: Artifact, batches: Sequence[Batch], *, kernels: str = "", threads: int = 1
    ) -> tuple[tuple[Tensor, ...], ...]:
        """The artefact's flat outputs on each batch.

        Raises:
            EdgeqError: it does not run here.
        """
        if not self.in_process(artifact.backend):
            return self.run(artifact, batches, kernels=kernels, threads=threads).outputs
        predict = self.predict(artifact, kernels=kernels, threads=threads)
        return tuple(predict(batch) for batch in batches)

    def predict(self, artifact: Artifact, *, kernels: str = "", threads: int = 1) -> backends.Predict:
        """The artefact as a function of this process.

        Raises:
            EdgeqError: see the backend's `load`.
        """
        options = {"kernels": kernels} if kernels else {}
        return backends.backend(artifact.backend).load(artifact.path, threads=threads, **options)

    def in_process(self, backend: str) -> bool:
        """Whether this process runs its artefacts: on the host, and an Apple runtime's on a Mac."""
        apple = backends.RUNTIMES[backends.runtime_of(backend)].apple
        return self.device is None or (apple and self.info.abi.endswith("-apple"))

    @staticmethod
    def _part(backend: str) -> Any:
        return importlib.import_module(f"edgeq.backends.{backends.runtime_of(backend)}.device")


def _machine(info: DeviceInfo) -> str:
    """The processor of an abi, as variants name it; Apple calls aarch64 arm64."""
    return info.abi.partition("-")[0].replace("arm64", "aarch64")
