"""Ours beside other post-training int8 on EfficientNet-Lite0: accuracy, time to quantize, latency, in one run.

python tools/bench_ptq.py [--limit N] [--only NAME]

Peers: torchao PT2E with XNNPACKQuantizer, ai-edge-quantizer, NNCF. They get an environment of their own (build/peers/venv,
some gigabytes), made on the first run, and see the same float network, the same 32 calibration crops and the same images.
Needs the folder EDGEQ_DATA and the packages of edgeq[demo].
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import ROOT, arrays, imagenet, machine, paired, table
from peers.exchange import measure

from edgeq import api, backends
from edgeq.graph.package import QuantizedModel

PEERS = {"torchao": "torchao_xnnpack.py", "ai-edge": "ai_edge.py", "nncf": "nncf_openvino.py"}
PACKAGES = (
    "torch==2.13.0",  # exactly: a range would take a build with CUDA
    "torchao==0.18.0",
    "executorch==1.5.1",
    "litert-torch==0.10.0",
    "ai-edge-quantizer==0.10.0",
    "nncf==3.4.0",
    "openvino==2026.4.1",
)
TITLES = {
    "edgeq-executorch": "edgeq, ExecuTorch",
    "edgeq-litert": "edgeq, LiteRT",
    "torchao": "torchao XNNPACKQuantizer, ExecuTorch",
    "ai-edge": "ai-edge-quantizer static int8, LiteRT",
    "nncf": "NNCF, OpenVINO",
}
TIME_LIMIT_S = 1800


def environment(folder: Path) -> Path:
    """The peers' own Python, installed where it is missing."""
    python, stamp = folder / "venv" / "bin" / "python", folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != "\n".join(PACKAGES):
        if not python.is_file():
            subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, PACKAGES[0]], check=True)
        subprocess.run([*pip, *PACKAGES], check=True)
        stamp.write_text("\n".join(PACKAGES))
    return python


def ours(folder: Path, evaluation: np.ndarray) -> dict[str, str]:
    """Quantize with the default recipe; measure the ExecuTorch and the LiteRT artefact. Returns name → failure."""
    start = time.perf_counter()
    model = api.quantize(ROOT / "examples" / "efficientnet_lite0.py")
    quantize_s = time.perf_counter() - start
    failures = {}
    for backend in ("executorch", "litert"):
        name = f"edgeq-{backend}"
        try:
            _measure(model, backend, folder, evaluation, quantize_s)
        except Exception as error:  # a failure is a row of the table
            failures[name] = f"{type(error).__name__}: {error}"
    return failures


def _measure(model: QuantizedModel, backend: str, folder: Path, evaluation: np.ndarray, quantize_s: float) -> None:
    engine, name = backends.backend(backend), f"edgeq-{backend}"
    start = time.perf_counter()
    int8 = api.export(model, backend, folder=folder / name).path
    lower_s = time.perf_counter() - start
    twin = api.export(model, backend, folder=folder / name, float_twin=True).path
    package = "executorch" if backend == "executorch" else "ai-edge-litert"
    first, second = arrays(engine.load(int8)), arrays(engine.load(twin))
    measure(folder, name, evaluation, first, second, ("edgeq", package), quantize_s=quantize_s, lower_s=lower_s)


def peer(python: Path, name: str, folder: Path) -> str | None:
    """Run a peer's script; returns the last line of its complaint, or None."""
    script = Path(__file__).parent / "peers" / PEERS[name]
    log = folder / f"{name}.log"
    with log.open("w") as out:
        try:
            done = subprocess.run(
                [str(python), str(script), str(folder)], stdout=out, stderr=subprocess.STDOUT, timeout=TIME_LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return f"not finished after {TIME_LIMIT_S} s"
    if done.returncode == 0:
        return None
    said = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"exit {done.returncode}: {said[-1][:120] if said else 'silent'}"


def row(name: str, folder: Path, failure: str | None, float_right: np.ndarray, labels: np.ndarray) -> list[str]:
    """One line of the table."""
    if failure is not None:
        return [TITLES[name], f"failed: {failure}", *[""] * 7]
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    right = np.load(folder / f"{name}.npy") == labels
    d = paired(100 * (right.astype(float) - float_right))
    return [
        TITLES[name],
        f"{100 * right.mean():.1f}",
        f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]",
        f"{found['quantize_s']:.1f}",
        f"{found['lower_s']:.1f}",
        f"{found['int8_ms']:.1f}",
        f"{found['float_ms']:.1f}",
        f"{found['float_ms'] / found['int8_ms']:.2f}×",
        f"{found['load']:.1f}",
    ]


HEADER = ("", "top-1 %", "− float, points [95 %]", "quantize s", "lower s", "int8 ms", "float ms", "ratio", "load")


def prepare(folder: Path, limit: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write what the peers read; returns evaluation images, labels and whether float is right on each."""
    import efficientnet_lite0 as task

    images, labels = imagenet(limit)
    calibration = torch.cat([batch[0] for batch in task.calibration()])
    np.savez(folder / "images.npz", calibration=calibration.numpy(), evaluation=images.numpy())
    network = task.model()
    torch.export.save(torch.export.export(network, task.example_inputs(), strict=False), folder / "network.pt2")
    with torch.no_grad():
        predicted = np.array([int(network(image[None]).argmax()) for image in images])
    return images.numpy(), labels, (predicted == labels).astype(float)


def main() -> None:
    """Parse the command line, run everybody in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, help="evaluation images to take, evenly spread")
    parser.add_argument(
        "--only", choices=("edgeq", *PEERS), action="append", help="run these alone; repeat for several"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = ROOT / "build" / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = tuple(args.only or ("edgeq", *PEERS))
    python = environment(folder) if set(chosen) & set(PEERS) else None
    evaluation, labels, float_right = prepare(folder, args.limit)
    failures: dict[str, str | None] = {}
    if "edgeq" in chosen:
        failures |= {"edgeq-executorch": None, "edgeq-litert": None, **ours(folder, evaluation)}
        print("edgeq done", file=sys.stderr)
    for name in PEERS:
        if name in chosen and python is not None:
            failures[name] = peer(python, name, folder)
            print(f"{name} done", file=sys.stderr)
    rows = [row(name, folder, failures[name], float_right, labels) for name in TITLES if name in failures]
    print(f"EfficientNet-Lite0, {len(labels)} images, float {100 * float_right.mean():.1f} %, 1 thread\n")
    print(table(HEADER, rows))
    print(f"\n{machine()}; peers: {', '.join(PACKAGES)}")


if __name__ == "__main__":
    main()
