"""edgeq diff: what is worse between two models is named and ends in 1; what is merely different is told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import sealed
from torch import nn

import edgeq
from edgeq.pages.tables import diff_tables
from edgeq.spec import EdgeqError
from edgeq.task import Task

RUNS = [10.0 + 0.01 * (i % 7) for i in range(30)]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model exported to TVM and verified, with a profile whose times are given."""
    batch = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    task = Task("small", lambda: nn.Conv2d(3, 4, 3), lambda: (batch,), lambda: [(batch,)])
    folder = tmp_path_factory.mktemp("diff") / "old"
    model = edgeq.quantize(task, output=folder)
    edgeq.export(model, "tvm")
    edgeq.verify(model)
    write(folder / "verify.json", float_metric={"top1": 0.8}, tvm={"metric": {"top1": 0.79}, "sqnr_db": 38.0})
    report = {"backend": "tvm", "device": "a core", "threads": 1, "versions": {}, "run_ms": RUNS, "rows": []}
    (folder / "profile.json").write_text(json.dumps({"backends": {"tvm": report}}))
    return folder


def write(path: Path, tvm: dict[str, Any], **fields: Any) -> None:
    told = json.loads(path.read_text())
    told["backends"]["tvm"].update(tvm)
    path.write_text(json.dumps({**told, **fields}))
    sealed(path.parent)


@pytest.fixture
def new(old: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(old, tmp_path / "new"))


def test_a_model_has_no_regression_against_itself(old: Path, new: Path) -> None:
    found = edgeq.diff(old, new)
    assert found["regressions"] == [] and found["plan"] == found["numbers"] == {}
    assert found["backends"]["tvm"]["latency"]["verdict"] == "no difference seen"
    command = [sys.executable, "-m", "edgeq.cli", "diff", str(old), str(new), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout) == found


@pytest.mark.parametrize(
    ("parity", "said"),
    [
        ({"max_lsb": 3}, "tvm: max LSB 3, 0 before"),
        ({"max_lsb": None}, "tvm: max LSB inf, 0 before"),
        ({"exact_share": 0.5}, "tvm: 50.00% equal, 100.00% before"),
        ({"sqnr_db": 20.0}, "tvm: 20.0 dB against float"),
        ({"metric": {"top1": 0.7}}, "tvm: top1 0.7, 0.79 before (float 0.8)"),
    ],
)
def test_worse_parity_is_a_regression_one_way_only(parity: dict[str, Any], said: str, old: Path, new: Path) -> None:
    write(new / "verify.json", tvm=parity)
    (sentence,) = edgeq.diff(old, new)["regressions"]
    assert sentence.startswith(said)
    assert edgeq.diff(new, old)["regressions"] == []


def test_slower_is_a_regression_only_where_its_interval_says_so(old: Path, new: Path) -> None:
    write(new / "profile.json", tvm={"run_ms": [1.3 * ms for ms in RUNS]})
    (sentence,) = edgeq.diff(old, new)["regressions"]
    assert "tvm: 13 ms, 10 ms before (1.30×" in sentence
    noisy = [10 + (i * 7 % 30) / 3 for i in range(30)]  # 10 to 20 ms: a higher median that noise explains
    write(old / "profile.json", tvm={"run_ms": noisy})
    write(new / "profile.json", tvm={"run_ms": [1.02 * ms for ms in noisy]})
    told = edgeq.diff(old, new)
    write(old / "profile.json", tvm={"run_ms": RUNS})
    assert told["regressions"] == [] and told["backends"]["tvm"]["latency"]["ratio"] == pytest.approx(1.02)
    write(new / "profile.json", tvm={"run_ms": [2 * ms for ms in RUNS], "device": "another core"})
    assert edgeq.diff(old, new)["backends"]["tvm"]["latency"] is None


def test_operators_sizes_and_runtimes_that_go(old: Path, new: Path) -> None:
    described = json.loads((new / "tvm" / "model.json").read_text())
    described["counts"] |= {"integer_ops": 0, "float_ops": 1}
    (new / "tvm" / "model.json").write_text(json.dumps(described))
    sealed(new)
    with (new / "tvm" / described["artifact"]).open("ab") as file:
        file.write(bytes(10_000))
    assert [s.split(",")[0] for s in edgeq.diff(old, new)["regressions"][:1]] == ["tvm: 1 layers in float"]
    assert "bytes" in edgeq.diff(old, new)["regressions"][1]
    shutil.rmtree(new / "tvm")
    assert edgeq.diff(old, new)["regressions"] == ["tvm: no longer exported"]


def test_plan_and_numbers_are_told(old: Path, new: Path) -> None:
    plan, numbers = json.loads((new / "plan.json").read_text()), json.loads((new / "qparams.json").read_text())
    (layer,) = plan["layers"]
    plan["layers"][layer] = "fp32"
    tensor = next(iter(numbers["tensors"]))
    del numbers["tensors"][tensor]
    (new / "plan.json").write_text(json.dumps(plan))
    (new / "qparams.json").write_text(json.dumps(numbers))
    sealed(new)
    found = edgeq.diff(old, new)
    assert found["plan"] == {layer: {"old": "w8a8", "new": "fp32"}} and list(found["numbers"]) == [tensor]
    assert found["regressions"] == [] and len(diff_tables(found)) > 2


def test_what_is_no_model_is_a_sentence(old: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgeqError, match="not a quantized model"):
        edgeq.diff(old, tmp_path)
