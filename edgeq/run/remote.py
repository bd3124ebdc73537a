"""A job on a device: send it with all its inputs, run it once, fetch what came out."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeq.device import Device, Finished, Server
from edgeq.spec import EdgeqError, Job

DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


@dataclass(frozen=True, slots=True)
class Timing:
    """What a runner measures besides: `runs` runs of the first batch after `warmup`, then as many with `events`."""

    warmup: int = 0
    runs: int = 0
    events: bool = False
    cores: tuple[int, ...] = ()


UNTIMED = Timing()


@dataclass(frozen=True, slots=True)
class Outcome:
    """outputs: of each batch, as the artefact gives them. result: the runner's result.json. instructions: where counted."""

    outputs: tuple[tuple[Tensor, ...], ...]
    result: dict[str, Any]
    instructions: int | None = None


def execute(
    device: Device,
    job: Job,
    batches: Sequence[Sequence[Tensor]],
    *,
    threads: int = 1,
    timing: Timing = UNTIMED,
    count: bool = False,
    timeout_s: float = 3600.0,
) -> Outcome:
    """Run `job` on `batches`, all sent beforehand.

    batches: flat inputs as the artefact takes them (a backend's `encode`). count: see `Device.run`.

    Raises:
        DeviceLost: it went away. EdgeqError: it refuses, the runner ends with an error, or gives what cannot be read.
    """
    if isinstance(device, Server):
        (artifact,) = job.files.values()
        warmup, runs = timing.warmup, timing.runs
        return Outcome(
            *device.execute(artifact, batches, threads=threads, warmup=warmup, runs=runs, timeout_s=timeout_s)
        )
    command = [*job.command, "--input", "in", "--output", "out", "--batches", str(len(batches))]
    command += ["--threads", str(threads), "--warmup", str(timing.warmup), "--runs", str(timing.runs)]
    if timing.cores:
        command += ["--cores", ",".join(map(str, timing.cores))]
    if timing.events:
        command.append("--events")
    command += ["--result", "result.json"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, local in job.files.items():
            device.put(local, name)
        _put_inputs(device, folder, batches)
        done = device.run(command, environment=job.environment, timeout_s=timeout_s, count=count)
        _check(device, job, done)
        device.get("result.json", folder / "result.json")
        try:
            result = json.loads((folder / "result.json").read_text())
            types = [(DTYPES[o["dtype"]], [int(d) for d in o["shape"]]) for o in result["outputs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise EdgeqError(
                f"{device.name}: {job.command[0]} wrote a result that cannot be read ({error!r})"
            ) from error
        outputs = tuple(
            tuple(_fetch(device, folder, f"out/{b}_{i}.bin", *kind) for i, kind in enumerate(types))
            for b in range(len(batches))
        )
    return Outcome(outputs, result, done.instructions)


def _put_inputs(device: Device, folder: Path, batches: Sequence[Sequence[Tensor]]) -> None:
    """DIR/inputs.txt and DIR/<batch>_<index>.bin of runner.h."""
    lines = [" ".join([str(x.dtype).removeprefix("torch."), *map(str, x.shape)]) for x in batches[0]]
    (folder / "inputs.txt").write_text("".join(f"{line}\n" for line in lines))
    device.put(folder / "inputs.txt", "in/inputs.txt")
    for b, batch in enumerate(batches):
        for i, tensor in enumerate(batch):
            path = folder / f"{b}_{i}.in"
            path.write_bytes(_bytes(tensor))
            device.put(path, f"in/{b}_{i}.bin")
            path.unlink()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def _fetch(device: Device, folder: Path, remote: str, dtype: torch.dtype, shape: list[int]) -> Tensor:
    local = folder / "fetched"
    device.get(remote, local)
    data = bytearray(local.read_bytes())
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise EdgeqError(
            f"{device.name}: {remote} holds {len(data)} bytes, not the {wanted} of its shape; run it again"
        )
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def _check(device: Device, job: Job, done: Finished) -> None:
    if done.status == 0:
        return
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    why = (
        said[-1]
        if said and done.status == 1
        else f"it ended with status {done.status}" + (f" ({said[-1]})" if said else "")
    )
    raise EdgeqError(f"{device.name}: {job.command[0]} failed: {why}")
