"""The command line: fast help, one object as JSON, and a user's mistakes end in one sentence and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

EDGEQ = Path(sys.executable).parent / "edgeq"

GOOD = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))

def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)

def calibration():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(1, 3, 8, 8, generator=generator),) for _ in range(3)]

def evaluate(predict):
    return {"mean": float(predict(*calibration()[0])[0].mean())}
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(EDGEQ), *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def write(folder: Path, text: str) -> Path:
    file = folder / "task.py"
    file.write_text(textwrap.dedent(text))
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task, quantized to `out` and exported to LiteRT."""
    folder = tmp_path_factory.mktemp("cli")
    write(folder, GOOD)
    made = run("quantize", "task.py", "-o", "out", "--json", cwd=folder)
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["operators"]["integer"] >= 2
    exported = run("export", "out", "--to", "litert", "--json", cwd=folder)
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["backends"]["litert"]["float_ops"] == 0
    return folder


def test_help_imports_neither_torch_nor_a_converter() -> None:
    code = "import sys, edgeq, edgeq.cli; sys.exit(any(m in sys.modules for m in ('torch', 'tvm', 'coremltools')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_lists_the_verbs_that_work(tmp_path: Path) -> None:
    text = run("--help", cwd=tmp_path).stdout
    verbs = (
        "demo",
        "quantize",
        "export",
        "verify",
        "profile",
        "explain",
        "search",
        "diff",
        "report",
        "recipes",
        "doctor",
    )
    assert all(verb in text for verb in verbs)
    assert "finetune" not in text


def test_verify_profile_and_report(home: Path) -> None:
    verified = run("verify", "out", "--json", "--fail-if", "max_lsb>0", cwd=home)
    assert verified.returncode == 0, verified.stderr
    row = json.loads(verified.stdout)["backends"]["litert"]
    assert row["max_lsb"] == 0 and row["exact_share"] == 1 and "mean" in row["metric"]
    profiled = run("profile", "out", "--runs", "3", "--warmup", "1", "--json", cwd=home)
    assert profiled.returncode == 0, profiled.stderr
    times = json.loads(profiled.stdout)["backends"]["litert"]
    assert times["total_ms"]["runs"] == 3 and times["float"]["total_ms"]["median"] > 0
    assert sum(row["ms"] for row in times["rows"]) == pytest.approx(times["total_ms"]["median"])
    plan = json.loads((home / "out" / "plan.json").read_text())["layers"]
    assert {key for row in times["rows"] for key in row["layers"]} == set(plan)
    assert run("report", "out", cwd=home).returncode == 0
    assert (home / "out" / "report.html").stat().st_size > 10_000


def test_calibration_on_zeros_is_warned_of_once_in_a_sentence(tmp_path: Path) -> None:
    write(tmp_path, GOOD.replace("torch.randn(1, 3, 8, 8, generator=generator)", "torch.zeros(1, 3, 8, 8)"))
    made = run("quantize", "task.py", "--recipe", "lidar-minmax", "--json", cwd=tmp_path)  # which reads its data twice
    assert made.returncode == 0 and json.loads(made.stdout), made.stderr
    said = [line for line in made.stderr.splitlines() if "is 0 in every calibration batch" in line]
    assert len(said) == 1 and said[0].startswith("edgeq: warning: input "), made.stderr
    assert "EdgeqWarning" not in made.stderr and ".py:" not in made.stderr


@pytest.mark.parametrize("verb", ["demo", "quantize", "export", "verify", "profile", "report"])
def test_general_verbs_speak_of_no_lidar(verb: str, tmp_path: Path) -> None:
    said = run(verb, "--help", cwd=tmp_path).stdout.lower()
    assert "--json" in said
    assert not [word for word in ("lidar", "bundle", "points", "boxes") if word in said]


def test_points_without_a_bundle_are_refused(tmp_path: Path) -> None:
    done = run("export", "out", "--to", "litert", "--points", "frame.bin", cwd=tmp_path)
    assert done.returncode == 2 and "add --bundle" in done.stderr


def test_fail_if_sets_the_exit_code(home: Path) -> None:
    failed = run("verify", "out", "--fail-if", "exact_share>0.5", cwd=home)
    assert failed.returncode == 1 and "holds for litert" in failed.stderr


def test_doctor_needs_nothing(tmp_path: Path) -> None:
    found = json.loads(run("doctor", "--json", cwd=tmp_path).stdout)
    assert set(found["backends"]) == {"litert", "executorch", "coreml", "tvm"}
    assert found["devices"]["host"]["cores"] >= 1


BAD_TASKS = {
    "no model": ("def example_inputs():\n    return ()\n", "needs a function model()"),
    "no such module": ("import nonesuch\n" + GOOD, "does not run: ModuleNotFoundError"),
    "wrong shape": (
        GOOD.replace("randn(1, 3, 8, 8,", "randn(1, 3, 8, 9,").replace("def evaluate", "def unused"),
        "shape (1, 3, 8, 9), but example_inputs() fixed",
    ),
    "empty": (GOOD.replace("range(3)", "range(0)"), "calibration() yields no batches"),
    "nan": (GOOD.replace("generator=generator),) for", "generator=generator) / 0 * 0,) for"), "contains NaN or Inf"),
    "dtype": (GOOD.replace("generator=generator),) for", "generator=generator).double(),) for"), "dtype torch.float64"),
    "no calibration data": (
        GOOD.replace("return [(torch.randn", "[(torch.randn"),
        "calibration() returned nothing; return a list",
    ),
    "no function": (GOOD + "\nevaluate = 3\n", "evaluate is no function"),
    "control flow": (
        GOOD.replace("nn.ReLU()", "Jump()") + "\nclass Jump(nn.Module):\n    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n",
        "torch.export cannot capture Sequential",
    ),
}


@pytest.mark.parametrize("case", BAD_TASKS)
def test_bad_tasks_end_in_one_sentence(case: str, tmp_path: Path) -> None:
    text, message = BAD_TASKS[case]
    write(tmp_path, text)
    failed = run("quantize", "task.py", "-o", "out", cwd=tmp_path)
    assert failed.returncode == 2
    assert message in " ".join(failed.stderr.split())
    assert "Traceback" not in failed.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["task.py"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quantize", "missing.py"), "no such task file"),
        (("quantize", "task.py", "--recipe", "magic"), "unknown recipe 'magic'"),
        (("quantize", "task.py", "--target", "abacus"), "unknown target 'abacus'"),
        (("quantize", "task.py", "--precision", "w4a8"), "computes conv2d in w8a8"),
        (("export", "out", "--to", "onnx"), "unknown backend 'onnx'"),
        (("verify", "elsewhere"), "not a quantized model"),
        (("verify", "out", "--fail-if", "lsb above one"), "write a name, a comparison and a number"),
        (("verify", "out", "--device", "abacus"), "unknown device"),
        (("verify", "out", "--to", "tvm"), "no tvm artefact"),
        (("quantize", "task.py", "-o", "."), "the current folder cannot be replaced"),
        (("verify", "out", "--fail-if", "max_lsb>1.2.3"), "write a name, a comparison and a number"),
    ],
)
def test_bad_arguments_end_in_one_sentence(arguments: tuple[str, ...], message: str, home: Path) -> None:
    failed = run(*arguments, cwd=home)
    assert failed.returncode == 2
    assert message in " ".join(failed.stderr.split())
    assert "Traceback" not in failed.stderr


def test_an_uninstalled_runtime_says_how_to_install_it(home: Path) -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'tvm' else find(name, *a)\n"
        "sys.argv = ['edgeq', 'export', 'out', '--to', 'tvm']\n"
        "from edgeq.cli import main; main()"
    )
    failed = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, check=False)
    assert failed.returncode == 2 and "pip install 'edgeq[tvm]'" in " ".join(failed.stderr.split())


def test_a_simulated_precision_is_refused_at_export(home: Path) -> None:
    made = run("quantize", "task.py", "--target", "simulated", "--precision", "w4a8", "-o", "narrow", cwd=home)
    assert made.returncode == 0, made.stderr
    failed = run("export", "narrow", "--to", "litert", cwd=home)
    assert failed.returncode == 2 and "w4a8" in failed.stderr


def test_interrupting_quantize_leaves_the_earlier_model(home: Path) -> None:
    import signal
    import time

    slow = GOOD.replace("for _ in range(3)]", "for _ in range(3)] + slow()") + (
        "\ndef slow():\n    import time, pathlib\n    pathlib.Path('waiting').touch()\n    time.sleep(60)\n    return []\n"
    )
    (home / "slow.py").write_text(slow)
    before = {p.name: p.stat().st_mtime_ns for p in (home / "out").iterdir()}
    process = subprocess.Popen(
        [str(EDGEQ), "quantize", "slow.py", "-o", "out"],
        cwd=home,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's `&` has it ignored
    )
    deadline = time.monotonic() + 120
    while not (home / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in errors
    assert {p.name: p.stat().st_mtime_ns for p in (home / "out").iterdir()} == before
