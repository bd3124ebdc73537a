"""LiteRT on Android: timed by `benchmark_model`, which the user gives or the phone has."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from edgeq.backends.litert import benchmark_model
from edgeq.backends.litert.benchmark_model import ON_DEVICE, PROGRAM, VARIABLE, Benchmark
from edgeq.backends.litert.profile import rows_of
from edgeq.backends.timing import report
from edgeq.device import Device, digest
from edgeq.spec import Artifact, EdgeqError, LatencyReport

PROCESSES: Final = 5  # the program prints no single run, so the total's spread is one over starts of it
METHOD: Final = "benchmark_model"


def benchmark(
    device: Device,
    model: str,
    artifact: Artifact,
    *,
    threads: int,
    warmup: int,
    runs: int,
    events: bool,
    cores: tuple[int, ...],
) -> LatencyReport:
    """Time a `.tflite` file: PROCESSES starts of the program with profiling off, then one with it on.

    model: the device in words. The total's runs are the starts, each with its median (or mean, from programs that print no
    median) of a share of `runs`. Inputs are the program's own, random ones.

    Raises:
        DeviceLost: the device went away. EdgeqError: there is no such program, or it failed: what to do.
    """
    program, version = _program(device)
    device.put(artifact.path, "model.tflite")
    each = max(1, runs // PROCESSES)

    def run(profiling: bool) -> Benchmark:
        command = benchmark_model.command(
            program,
            "model.tflite",
            threads=threads,
            warmup=warmup,
            runs=runs if profiling else each,
            profiling=profiling,
        )
        if cores:
            command = ["taskset", f"{sum(1 << c for c in cores):x}", *command]
        done = device.run(command)
        said = f"{done.stdout}\n{done.stderr}"
        if done.status:
            last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "nothing")
            raise EdgeqError(f"{device.name}: {PROGRAM} ended with status {done.status}: {last[:200]}")
        try:
            return benchmark_model.parse(said)
        except EdgeqError as error:
            raise EdgeqError(f"{device.name}: {error}") from error

    starts = [run(profiling=False) for _ in range(PROCESSES)]
    traced = run(profiling=True) if events else None
    return report(
        [b.mean_ms if b.median_ms is None else b.median_ms for b in starts],
        rows_of(artifact, traced.nodes) if traced else (),
        backend=artifact.backend,
        versions={PROGRAM: version},
        threads=threads,
        warmup=warmup,
        method=METHOD,
        device=model,
    )


def _program(device: Device) -> tuple[str, str]:
    """The program's name for `device.run`, and which one it is.

    Raises:
        EdgeqError: there is none, or EDGEQ_BENCHMARK_MODEL names no file.
    """
    given = os.environ.get(VARIABLE)
    if given:
        local = Path(given)
        if not local.is_file():
            raise EdgeqError(f"{VARIABLE}: no file {given}; let it name the {PROGRAM} for the phone's processor")
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / PROGRAM  # files are executable there if they are here
            copy.write_bytes(local.read_bytes())
            copy.chmod(0o755)
            device.put(copy, PROGRAM)
        return f"./{PROGRAM}", digest(local)[:12]
    if device.run(["ls", ON_DEVICE]).status == 0:
        return ON_DEVICE, "on the device"
    raise EdgeqError(
        f"{device.name}: LiteRT is timed on Android by {PROGRAM}, and there is none: download the one for the phone's "
        f"processor from LiteRT's or TensorFlow's releases and let {VARIABLE} name it, or adb push it to {ON_DEVICE}"
    )
