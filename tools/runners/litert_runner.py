"""Runs a LiteRT model (.tflite) with LiteRT's own Python package, on a board or an emulated one; takes no part of edgeq.

    python3 litert_runner.py --model FILE --input DIR --output DIR --batches N --threads T --warmup W --runs R
                             [--cores 4,5] [--kernels xnnpack|builtin|reference] [--events] --result FILE

Files, order of runs and result are those of the C++ runners (runner.h). LiteRT's Python interpreter shows no operators'
times, so events come from the C profiler (profiler.py beside this file); they stay empty where that is not there, in a
release that it does not know, and for other kernels than the default ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """One sentence and status 1, as from the other runners."""

    def error(self, message: str) -> NoReturn:
        """Print it and end."""
        self.exit(1, f"{message}\n")


def main() -> None:
    """Run as the command line says; a mistake ends in one sentence on stderr and status 1."""
    parser = Parser(description=__doc__)
    for name in ("model", "input", "output", "result"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--batches", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--cores", type=lambda text: [int(c) for c in text.split(",")], default=[])
    parser.add_argument("--kernels", default="xnnpack", choices=("xnnpack", "builtin", "reference"))
    parser.add_argument("--events", action="store_true")
    try:
        serve(parser.parse_args())
    except (OSError, ValueError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        sys.exit(lines[0])


def serve(options: argparse.Namespace) -> None:
    """Run all batches, write outputs, time, write the result."""
    if options.cores:
        os.sched_setaffinity(0, options.cores)
    import numpy as np

    start = time.perf_counter_ns()
    engine, runtime = interpreter(options)
    load_ms = (time.perf_counter_ns() - start) / 1e6
    inputs, outputs = engine.get_input_details(), engine.get_output_details()

    def feed(batch: int) -> None:
        for i, detail in enumerate(inputs):
            path = options.input / f"{batch}_{i}.bin"
            values = np.fromfile(path, detail["dtype"])
            if values.size != np.prod(detail["shape"]) or values.nbytes != path.stat().st_size:
                taken = int(np.prod(detail["shape"])) * np.dtype(detail["dtype"]).itemsize
                raise ValueError(f"{path} holds {path.stat().st_size} bytes, and input {i} takes {taken}")
            engine.set_tensor(detail["index"], values.reshape(detail["shape"]))

    options.output.mkdir(exist_ok=True)
    for batch in range(options.batches):
        feed(batch)
        engine.invoke()
        for i, detail in enumerate(outputs):
            np.ascontiguousarray(engine.get_tensor(detail["index"])).tofile(options.output / f"{batch}_{i}.bin")
    run_ms: list[float] = []
    events: list[dict[str, object]] = []
    events_run_ms: list[float] = []
    if options.runs:
        feed(0)
        times(engine.invoke, options.warmup)
        run_ms = times(engine.invoke, options.runs)
        if options.events and options.kernels == "xnnpack":
            events, events_run_ms = traced(
                options, {d["name"]: engine.get_tensor(d["index"]).tobytes() for d in inputs}
            )
    result = {
        "runtime": runtime,
        "threads": options.threads,
        "cores": options.cores,
        "outputs": [
            {"dtype": np.dtype(d["dtype"]).name, "shape": [int(s) for s in engine.get_tensor(d["index"]).shape]}
            for d in outputs
        ],
        "load_ms": load_ms,
        "run_ms": run_ms,
        "events": events,
        "events_run_ms": events_run_ms,
    }
    options.result.write_text(json.dumps(result, indent=1) + "\n")


def interpreter(options: argparse.Namespace) -> tuple[Any, str]:
    """LiteRT's interpreter with its tensors allocated, and its name and version."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise RuntimeError(
            f"this device's Python has no LiteRT ({error}): run python3 -m pip install ai-edge-litert there"
        ) from error
    types = {
        "xnnpack": OpResolverType.AUTO,
        "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": OpResolverType.BUILTIN_REF,
    }
    made = Interpreter(
        model_path=str(options.model),
        num_threads=options.threads,
        experimental_op_resolver_type=types[options.kernels],
    )
    made.allocate_tensors()
    try:
        release = version("ai-edge-litert")
    except PackageNotFoundError:
        release = "of unknown version"
    return made, f"litert {release}"


def traced(options: argparse.Namespace, inputs: dict[str, bytes]) -> tuple[list[dict[str, object]], list[float]]:
    """Events and milliseconds of the profiled runs; nothing where LiteRT's profiler cannot be used here."""
    try:
        import profiler  # type: ignore[import-not-found] # edgeq/backends/litert/profiler.py, sent along
    except ImportError:
        return [], []
    if not profiler.available():
        return [], []
    try:
        profiled = profiler.Profiled(options.model, options.threads)
    except RuntimeError:  # LiteRT's compiled model refuses what its interpreter takes
        return [], []
    for name, values in inputs.items():
        profiled.set_input(name, values)
    for _ in range(1 + options.warmup):
        profiled.run()
    seen: list[Any] = []
    spent = times(lambda: seen.append(profiled.run()), options.runs)
    profiled.close()
    return profiler.merged(seen), spent


def times(call: Callable[[], object], runs: int) -> list[float]:
    """Milliseconds of each of `runs` calls."""
    spent = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        spent.append((time.perf_counter_ns() - start) / 1e6)
    return spent


if __name__ == "__main__":
    main()
