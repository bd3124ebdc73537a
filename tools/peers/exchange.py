"""What a peer's script and tools/bench_ptq.py pass each other: network.pt2 and images.npz in, one JSON and logits out.

Runs in the peers' environment too, so it imports NumPy and the standard library only; torch comes with a peer.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

WARMUP, RUNS, BUDGET_S = 3, 30, 40.0
Run = Callable[[np.ndarray], np.ndarray]


def images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Calibration images [32, 3, 224, 224] and evaluation images [N, 3, 224, 224], float32."""
    stored = np.load(folder / "images.npz")
    return stored["calibration"], stored["evaluation"]


def network(folder: Path) -> Any:
    """The float network as a torch.fx GraphModule, one image a call."""
    import torch

    return torch.export.load(folder / "network.pt2").module()


def latency_ms(int8: Callable[[], object], twin: Callable[[], object]) -> tuple[float, float]:
    """Medians of both, called in turn so that a busy machine slows both alike.

    RUNS calls each, fewer where they take longer than BUDGET_S.
    """
    times: tuple[list[float], list[float]] = ([], [])
    begun = time.perf_counter()
    for i in range(WARMUP + RUNS):
        if i > WARMUP and time.perf_counter() - begun > BUDGET_S:
            break
        for run, seen in zip((int8, twin), times, strict=True):
            start = time.perf_counter()
            run()
            if i >= WARMUP:
                seen.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def measure(
    folder: Path, name: str, evaluation: np.ndarray, int8: Run, twin: Run, packages: Sequence[str], **seconds: float
) -> None:
    """Write `name`.npy (predicted classes) and `name`.json (times, versions) into `folder`."""
    image = evaluation[:1]
    ours, theirs = latency_ms(lambda: int8(image), lambda: twin(image))
    predicted = np.array([int(int8(evaluation[i : i + 1]).argmax()) for i in range(len(evaluation))])
    np.save(folder / f"{name}.npy", predicted)
    found = {
        **seconds,
        "int8_ms": ours,
        "float_ms": theirs,
        "load": os.getloadavg()[0],
        "versions": {p: version(p) for p in packages},
    }
    (folder / f"{name}.json").write_text(json.dumps(found) + "\n")


def exchange_folder() -> Path:
    """The folder named on the command line; every library kept to one thread."""
    import torch

    torch.set_num_threads(1)
    return Path(sys.argv[1])
