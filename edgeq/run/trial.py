"""An artefact loaded and run once in a process of its own, so that a runtime that refuses it or dies of it gives a sentence.

`python -m edgeq.run.trial RUNTIME ARTEFACT INPUTS KERNELS...` is that process; it imports the runtime's run.py alone.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgeq import backends
from edgeq.devices.host import Host
from edgeq.run.supervised import manner
from edgeq.spec import Artifact, EdgeqError

REFUSED = 4  # the child's exit code when it wrote why; others are the interpreter's or a signal's


def run_once(artifact: Artifact, inputs: Sequence[Tensor]) -> None:
    """Load `artifact` with every kernel set that its runtime has here, and run it on `inputs` with the one apps get.

    Nothing is run where the artefact is for other machines.

    Raises:
        EdgeqError: the runtime refuses the artefact, or ends the process.
    """
    name = artifact.backend
    if backends.runs_here(name).startswith("no"):
        return
    sets = [kernels for kernels, _ in backends.backend(name).target.kernel_sets(Host().describe().abi)]
    with tempfile.TemporaryDirectory() as folder:
        given, told = Path(folder) / "inputs.pt", Path(folder) / "refusal.json"
        torch.save([x.detach().clone() for x in inputs], given)
        command = [sys.executable, "-P", "-m", "edgeq.run.trial", name, str(artifact.path), str(given), str(told)]
        done = subprocess.run([*command, *sets], capture_output=True, text=True, errors="replace", check=False)
        if done.returncode == REFUSED:
            raise EdgeqError(f"{name} cannot run what was exported: {json.loads(told.read_text())}")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        said = f", saying {last[0][:200]!r}" if last else ""
        raise EdgeqError(
            f"{name}'s runtime ended its process {manner(done.returncode)} when it loaded or ran what was exported{said}; "
            "keep the layers of its unusual operators in float (fp32 in plan.json), or export to another runtime"
        )


def main(runtime: str, path: str, inputs: str, told: str, *sets: str) -> int:
    """The child: 0 where the artefact ran; else `told` says why it did not, unless the runtime takes the process along."""
    tensors = torch.load(inputs, weights_only=True)
    try:
        load = importlib.import_module(f"edgeq.backends.{runtime}.run").load
        for kernels in sets:
            predict = load(Path(path), threads=1, **({"kernels": kernels} if kernels else {}))
        predict(tensors)
    except Exception as error:  # a runtime's own, whatever its type
        words = str(error) if isinstance(error, EdgeqError) else f"{type(error).__name__}: {error}"
        Path(told).write_text(json.dumps(" ".join(words.split())[:1000]))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
