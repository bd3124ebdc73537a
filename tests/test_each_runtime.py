"""Each runtime by itself: one that refuses or dies gives a sentence in its row, and the others go on."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import edgeq
from edgeq.cli import terminal
from edgeq.graph.package import QuantizedModel
from edgeq.run import trial
from edgeq.run.each import each
from edgeq.run.files import find
from edgeq.run.verify import parity_json, verify
from edgeq.spec import Artifact, EdgeqError
from edgeq.task import Task


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> QuantizedModel:
    """One convolution, exported to LiteRT and TVM."""
    batch = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    task = Task("small", lambda: nn.Conv2d(3, 4, 3), lambda: (batch,), lambda: [(batch,)])
    made = edgeq.quantize(task, output=tmp_path_factory.mktemp("each") / "out")
    for name in ("litert", "tvm"):
        edgeq.export(made, name)
    return made


def command(model: QuantizedModel, *arguments: str, patch: str = "", home: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; from edgeq import api, cli\n{patch}\nsys.argv = ['edgeq', *sys.argv[1:]]; cli.main()"
    run = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "EDGEQ_HOME": str(home)}
    return subprocess.run(run, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_every_runtime_has_a_row_and_a_sentence() -> None:
    def work(name: str) -> dict[str, Any]:
        if name == "b":
            raise EdgeqError("b: no such kernel")
        if name == "c":
            raise KeyError("node")
        return {"max_lsb": 0}

    rows = each(["a", "b", "c", "d"], "verify", work)
    assert rows["a"] == rows["d"] == {"max_lsb": 0} and rows["b"] == {"error": "b: no such kernel"}
    assert rows["c"]["fault"] and "verify c failed" in rows["c"]["error"] and "fault in edgeq" in rows["c"]["error"]
    with pytest.raises(KeyError):  # one alone: Python gets the exception itself
        each(["c"], "verify", work)


def test_verify_goes_on_behind_a_damaged_artefact(model: QuantizedModel, tmp_path: Path) -> None:
    artifact = find(model, "litert")
    whole = artifact.path.read_bytes()
    artifact.path.write_bytes(whole[: len(whole) // 2])
    try:
        done = command(model, "verify", str(model.folder), "--json", home=tmp_path)
        shown = command(model, "verify", str(model.folder), home=tmp_path)
    finally:
        artifact.path.write_bytes(whole)
    rows = json.loads(done.stdout)["backends"]
    assert done.returncode == 1 and "damaged" in rows["litert"]["error"] and rows["tvm"]["max_lsb"] == 0
    assert shown.returncode == 1 and "damaged" in shown.stdout and "TVM" in shown.stdout
    kept = json.loads((Path(str(model.folder)) / "verify.json").read_text())["backends"]
    assert list(kept) == ["tvm"]  # nothing claims parity of what does not load


def test_a_fault_in_one_runtime_ends_in_three_and_the_others_export(model: QuantizedModel, tmp_path: Path) -> None:
    patch = (
        "export = api.export\n"
        "def broken(model, to, **options):\n"
        "    if to == 'litert': raise IndexError('list index out of range')\n"
        "    return export(model, to, **options)\n"
        "api.export = broken"
    )
    arguments = ("export", str(model.folder), "--to", "litert", "--to", "tvm", "--json")
    done = command(model, *arguments, patch=patch, home=tmp_path)
    rows = json.loads(done.stdout)["backends"]
    assert done.returncode == 3 and rows["tvm"]["integer_ops"] == 1
    assert rows["litert"]["fault"] and "IndexError" in rows["litert"]["error"]


@pytest.mark.parametrize(
    ("end", "manner"),
    [("os.kill(os.getpid(), signal.SIGSEGV)", "by SIGSEGV"), ("os._exit(1)", "with status 1")],
    ids=["signal", "exit"],  # LLVM exits where it cannot write its output
)
def test_a_converter_that_ends_the_process_is_a_row_and_the_others_export(
    end: str, manner: str, model: QuantizedModel, tmp_path: Path
) -> None:
    patch = (
        "import dataclasses, os, signal\n"
        "from edgeq import backends\n"
        "backend = backends.backend\n"
        f"def dies(*_, **__): {end}\n"
        "def deadly(name):\n"
        "    engine = backend(name)\n"
        "    return dataclasses.replace(engine, lower=dies) if name == 'litert' else engine\n"
        "backends.backend = deadly"
    )
    folder = str(model.folder)
    done = command(model, "export", folder, "--to", "litert", "--to", "tvm", "--json", patch=patch, home=tmp_path)
    rows = json.loads(done.stdout)["backends"]
    assert done.returncode == 1 and rows["tvm"]["integer_ops"] == 1
    assert f"litert's converter ended its process {manner}" in rows["litert"]["error"]
    alone = command(model, "export", folder, "--to", "litert", patch=patch, home=tmp_path)
    assert alone.returncode == 2 and f"edgeq: litert's converter ended its process {manner}" in alone.stderr
    edgeq.export(model, "litert")


def test_a_signal_to_the_command_reaches_its_converter(model: QuantizedModel, tmp_path: Path) -> None:
    """Somebody's SIGTERM ends both processes, and is no converter's doing."""
    patch = (
        "import os, signal\n"
        "export = api.export\n"
        "def asked(*given, **options):\n"
        "    from edgeq.run.supervised import lowering\n"
        "    with lowering('litert'):\n"
        "        os.kill(os.getppid(), signal.SIGTERM)\n"
        "        signal.pause()\n"
        "api.export = asked"
    )
    done = command(model, "export", str(model.folder), "--to", "litert", patch=patch, home=tmp_path)
    assert done.returncode == 128 + signal.SIGTERM and "converter" not in done.stderr


def test_an_unknown_runtime_is_refused_before_the_first_is_exported(model: QuantizedModel, tmp_path: Path) -> None:
    before = find(model, "litert").path.stat().st_mtime_ns
    done = command(model, "export", str(model.folder), "--to", "litert", "--to", "onnx", home=tmp_path)
    assert done.returncode == 2 and "unknown backend 'onnx'" in done.stderr
    assert find(model, "litert").path.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["litert", "tvm"])
def test_what_was_exported_runs_in_a_process_of_its_own(name: str, model: QuantizedModel) -> None:
    trial.run_once(find(model, name), model.golden)


def test_a_runtime_that_refuses_inputs_or_file_is_a_sentence(model: QuantizedModel, tmp_path: Path) -> None:
    artifact = find(model, "litert")
    with pytest.raises(EdgeqError, match=r"litert cannot run what was exported: .*takes 1 inputs, got 2"):
        trial.run_once(artifact, (*model.golden, *model.golden))
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(artifact.path.read_bytes()[:64])
    with pytest.raises(EdgeqError, match="cut short or damaged"):
        trial.run_once(dataclasses.replace(artifact, path=cut), model.golden)


def test_a_runtime_that_dies_is_a_sentence_and_leaves_no_artefact(
    model: QuantizedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TVM loads a library whose entry ends the process, as a runtime's own check would."""
    source, library = tmp_path / "dies.c", tmp_path / "dies.so"
    source.write_text(
        "#include <stdio.h>\n#include <stdlib.h>\n__attribute__((constructor)) static void start(void) "
        '{ fputs("Check failed: bad kernel\\n", stderr); abort(); }\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    with pytest.raises(EdgeqError, match=r"tvm's runtime ended its process by SIGABRT .*Check failed: bad kernel"):
        trial.run_once(Artifact("tvm", library), model.golden)

    engine = edgeq.backends.backend("tvm")

    def lowers(program: object, folder: Path, *, name: str, **options: object) -> Artifact:
        path = folder / f"{name}.so"
        path.write_bytes(library.read_bytes())
        return Artifact("tvm", path)

    monkeypatch.setattr("edgeq.backends.backend", lambda name: dataclasses.replace(engine, lower=lowers))
    with pytest.raises(EdgeqError, match="SIGABRT"):
        edgeq.export(model, "tvm", folder=tmp_path / "tvm")
    assert list((tmp_path / "tvm").iterdir()) == []


def test_conditions_are_checked_before_the_work_and_decide_the_exit_code(model: QuantizedModel, tmp_path: Path) -> None:
    folder = str(model.folder)
    for verb in ("export", "verify", "profile"):
        arguments = (verb, folder, "--to", "tvm", "--fail-if", "float_ops>0", "--fail-if", "foo>1")
        done = command(model, *arguments, patch="api.find = api.export = None", home=tmp_path)
        assert done.returncode == 2 and "reports no 'foo'" in done.stderr, done.stderr
    size = find(model, "tvm").path.stat().st_size
    conditions = ("--fail-if", f"size_bytes>{size - 1}", "--fail-if", "float_ops>0")
    done = command(model, "export", folder, "--to", "tvm", "--json", *conditions, home=tmp_path)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and f"size_bytes>{size - 1} holds for tvm" in done.stderr
    assert found["failing"] == {"tvm": [f"size_bytes>{size - 1}"]}
    assert found["backends"]["tvm"]["size_bytes"] == size
    assert found["backends"]["tvm"]["float_size_bytes"] == 4 * (4 * 3 * 3 * 3 + 4)


def test_an_evaluate_that_fails_on_the_artefact_keeps_its_parity(model: QuantizedModel) -> None:
    def evaluate(predict: Any) -> dict[str, float]:
        predict(torch.zeros(1, 3, 7, 7))  # a larger image than the artefact takes
        return {"top1": 1.0}

    batch = torch.zeros(1, 3, 6, 6)
    task = Task("small", lambda: nn.Conv2d(3, 4, 3), lambda: (batch,), None, evaluate)
    artifact = find(model, "litert")
    row = parity_json(verify(model, artifact, [model.golden], task=task), artifact, model)
    assert row["max_lsb"] == 0 and row["metric"] is None and "evaluate() failed" in str(row["metric_error"])


def test_junit_has_a_case_a_runtime(model: QuantizedModel, tmp_path: Path) -> None:
    file = tmp_path / "ci" / "junit.xml"
    artifact = find(model, "litert")
    whole = artifact.path.read_bytes()
    artifact.path.write_bytes(whole[:64])
    arguments = ("verify", str(model.folder), "--junit", str(file), "--fail-if", "exact_share>0.5")
    try:
        done = command(model, *arguments, home=tmp_path)
        alone = command(model, *arguments[:2], "--to", "litert", "--junit", str(tmp_path / "one.xml"), home=tmp_path)
    finally:
        artifact.path.write_bytes(whole)
    suite = ElementTree.parse(file).getroot()[0]
    assert done.returncode == 1
    assert {k: suite.attrib[k] for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "2",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    cases = {case.attrib["name"]: case for case in suite}
    assert "damaged" in cases["litert"].find("error").attrib["message"]
    assert cases["tvm"].find("failure").attrib["message"] == "exact_share>0.5 for tvm"
    assert cases["tvm"].find("properties/property[@name='max_lsb']").attrib["value"] == "0.0"
    assert alone.returncode == 2 and "damaged" in (tmp_path / "one.xml").read_text()


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeq.cli", "--version"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0 and done.stdout == f"edgeq {edgeq.__version__}\n" == f"edgeq {version('edgeq')}\n"
    assert all(hasattr(edgeq, name) for name in edgeq.__all__)


def test_redirected_progress_is_plain_lines(model: QuantizedModel, tmp_path: Path) -> None:
    done = command(model, "verify", str(model.folder), "--to", "tvm", home=tmp_path)
    said = done.stderr.splitlines()
    assert said[0] == "verify tvm …" and re.fullmatch(r"verify tvm done in \d+\.\d s", said[-1]) and len(said) == 2
    failed = command(model, "export", str(model.folder), "--to", "litert", "--io", "int4", home=tmp_path)
    assert failed.stderr.splitlines()[1].startswith("export litert failed after")


def test_on_a_terminal_no_finished_stage_keeps_its_spinner() -> None:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    shown = Console(file=io.StringIO(), force_terminal=True, width=60)
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=shown) as progress:
        bar = terminal.Bar(progress)
        bar("capture", 0, None)
        bar("calibrate", 3, 8)
        bar.finish()
        assert all(task.finished and task.visible for task in progress.tasks)
        bar("export", 0, None)
        bar.finish(failed=True)
        assert [task.description for task in progress.tasks if task.visible] == ["capture", "calibrate"]


class Gated(nn.Module):
    """An image and a number without axes, which gates it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 4, 3), nn.Linear(1, 4)

    def forward(self, number: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image).relu() * self.gate(number.reshape(1, 1)).reshape(1, 4, 1, 1)


@pytest.mark.parametrize("to", ["litert", "executorch", "coreml", "tvm"])
def test_a_number_without_axes_is_an_input_everywhere(to: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    batches = [(torch.rand(()), torch.randn(1, 3, 6, 6)) for _ in range(4)]
    net = Gated().eval()
    model = edgeq.quantize(net, example_inputs=batches[0], calibration=batches, output=tmp_path / "out")
    got, wanted = model.qdq(batches[0])[0], net(*batches[0]).detach()
    assert float((got - wanted).square().sum() / wanted.square().sum()) < 1e-3
    edgeq.export(model, to)
    assert edgeq.verify(model)["backends"][to]["max_lsb"] <= (1 if to == "coreml" else 0)
