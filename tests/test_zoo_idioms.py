"""Five quick networks of the zoo, whole: integers are the simulation's where they are claimed, and near the own module."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor
from zoo import network
from zoo.material import sqnr_db

import edgeq
from edgeq import backends
from edgeq.run.place import Place
from edgeq.run.verify import verify

TOOLS = Path(__file__).parents[1] / "tools"
RUNTIMES = [name for name in backends.RUNTIMES if name == "coreml" or backends.runs_here(name) == "yes"]
# dB against the module on unseen data, on every runtime; a few below what was measured
QUICK = {"ds_cnn": 33.0, "tcn": 21.0, "siamese": 14.0, "centernet": 20.0, "video_r2plus1d": 38.0}


@pytest.mark.parametrize("name", QUICK)
def test_integers_are_the_simulations_and_near_the_module(name: str, tmp_path: Path) -> None:
    net = network(name)
    model = edgeq.quantize(net.module, example_inputs=net.example_inputs, calibration=net.calibration)
    for runtime in RUNTIMES:
        engine = backends.backend(runtime)
        artifact = engine.lower(model.program, tmp_path, name=runtime, layers=model.labels)
        kernels = engine.target.kernel_sets(Place().info.abi)[-1][0]

        def predict(*inputs: Tensor, artifact: edgeq.Artifact = artifact, kernels: str = kernels) -> tuple[Tensor, ...]:
            return tuple(Place().answers(artifact, [inputs], kernels=kernels, threads=1)[0])

        assert sqnr_db(net, predict) > QUICK[name], runtime
        if runtime != "coreml":  # claims no integers: its device decides
            for kernel_set in verify(model, artifact, net.held_out).kernels:
                for output in kernel_set.outputs:  # one in float has seen integers too: its LSB is 1/255 of its range
                    assert output.max_lsb <= (0.05 if output.equivalent else 0), (runtime, kernel_set.kernels, output)


def test_a_network_is_the_same_on_every_call() -> None:
    first, again = network("tcn"), network("tcn")
    batch = first.held_out[0]
    assert all((a == b).all() for a, b in zip(first.calibration[0], again.calibration[0], strict=True))
    assert (first.module(*batch) == again.module(*batch)).all()


def test_a_row_that_is_there_is_not_made_again_and_every_status_has_its_share(tmp_path: Path) -> None:
    """A fault is a row and an exit code, never the end; what a status is called is read off the counts."""
    ops = {"integer": 14, "table": 5, "eligible": 0, "float": 1}
    macs = {"integer": 990, "table": 0, "eligible": 0, "float": 10}
    found = {"max_lsb": 0.0, "exact_share": 1.0, "sqnr_db": 38.04, "int8_ms": 1.5, "float_ms": 3.25}
    litert = {"ops": ops, "macs": macs, **found}
    said = {
        "quantize": "ok",
        "export tvm": "FAULT exit code -11: no more",
        "verify litert": "ok 0 LSB, 100.0% equal, 38 dB",
    }
    row = {"said": said, "seconds": {"quantize": 2.0}, "float": {"softmax": 1}, "runtimes": {"litert": litert}}
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    rows.write_text(json.dumps({"ds_cnn": row}))
    tool = "zoo_idioms.py"
    page.write_text(
        f"before\n<!-- written by tools/{tool} -->\nold\n<!-- end of what tools/{tool} writes -->\nbehind\n"
    )
    command = [sys.executable, str(TOOLS / tool), "--json", str(rows), "--only", "ds_cnn", "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("behind\n") and "old" not in text
    (line,) = (line for line in text.splitlines() if line.startswith("| ds_cnn"))
    assert "integer 70% (99.0%), table 25% (0.0%), 0 LSB, 38.0 dB, 1.50 ms, float 3.25" in line
    assert "softmax ×1" in line and "export tvm: FAULT exit code -11: no more" in line
    assert json.loads(rows.read_text()) == {"ds_cnn": row}
