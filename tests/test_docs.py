"""What the documentation says is true: tables from the code, commands that exist, links that resolve, examples that run."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

import edgeq
from edgeq import api, cli
from edgeq.graph.package import load_plan
from edgeq.run.compare import Ratio
from edgeq.run.verify import OutputParity, Parting
from edgeq.spec import InstructionReport, LatencyReport, OpLatency, OpPlacement, Spread

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of `language`, empty for those that name none."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"))


def commands() -> Iterator[tuple[str, str]]:
    """(page, command line) of every edgeq command in a block, an indented block or a code span with options or arguments."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in blocks(page, "") for line in block.splitlines()]
        lines += [line.strip().split("   ")[0] for line in text.splitlines() if line.startswith("    edgeq ")]
        lines += re.findall(r"`(edgeq [a-z]+ [^`]+)`", text)
        yield from ((page.name, line) for line in lines if line.startswith("edgeq "))


COMMANDS = sorted(set(commands()))


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of tools/ by name."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(ROOT / "tools"))
        return import_module(name)

    return load


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's task file, as a reader would save it."""
    (block,) = [b for b in blocks(README, "python") if b.startswith("# my_task.py")]
    file = tmp_path_factory.mktemp("readme") / "my_task.py"
    file.write_text(block)
    return file


@pytest.fixture(scope="module")
def model(task: Path) -> edgeq.QuantizedModel:
    return api.quantize(task, output=task.parent / "out")


def test_tables_are_those_of_the_code(tool: Any) -> None:
    for path, wanted in tool("write_tables").pages().items():
        assert path.read_text(encoding="utf-8") == wanted, f"{path} is stale: run python tools/write_tables.py"


def test_commands_are_found() -> None:
    assert {line.split()[1] for _, line in COMMANDS} >= {"demo", "quantize", "export", "verify", "profile", "report"}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_command_exists_with_its_options(page: str, line: str) -> None:
    _, *words = shlex.split(line)
    command: Any = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"{page}: {line}"
        command, *words = command.commands[words[0]], *words[1:]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= options, f"{page}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            headings = re.findall(r"(?m)^#+ (.*)$", linked.read_text(encoding="utf-8"))
            anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{page.name} links to {target}, but there is no such heading"


def test_readme_task_file_quantizes(model: edgeq.QuantizedModel, task: Path) -> None:
    assert len([line for line in task.read_text().splitlines() if line and not line.startswith("#")]) <= 10
    assert [op.kind for op in model.integers.ops.values()] == ["conv2d", "reshape", "linear"]


def test_readme_plan_is_an_edit_of_the_one_written(model: edgeq.QuantizedModel, task: Path) -> None:
    (block,) = blocks(README, "json")
    edited = task.parent / "edited.json"
    edited.write_text(block)
    written, changed = load_plan(task.parent / "out" / "plan.json"), load_plan(edited)
    assert (changed.target, changed.recipe) == (written.target, written.recipe)
    assert list(changed.layers) == list(written.layers)
    assert changed.layers != written.layers
    assert [op.kind for op in api.quantize(task, plan=edited).integers.ops.values()] == ["conv2d", "reshape"]


def test_readme_names_the_python_api_as_it_is() -> None:
    code = "\n".join(b for b in blocks(README, "python") if "import edgeq" in b)
    calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    assert len(calls) >= 5
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        assert call.func.attr in edgeq.__all__
        function = getattr(edgeq, call.func.attr)
        assert {k.arg for k in call.keywords} <= set(function.__annotations__)
    spans = set(re.findall(r"`edgeq\.(\w+)", README.read_text(encoding="utf-8")))
    assert spans <= set(edgeq.__all__)


def test_every_field_is_described(model: edgeq.QuantizedModel, task: Path) -> None:
    described = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "json.md").read_text(encoding="utf-8")))
    out = task.parent / "out"
    for name in ("plan.json", "manifest.json", "qparams.json"):
        assert set(json.loads((out / name).read_text())) <= described, name
    for kind in (OutputParity, OpPlacement, LatencyReport, Spread, OpLatency, InstructionReport, Ratio, Parting):
        assert {f.name for f in dataclasses.fields(kind)} <= described, kind
    doctor = api.doctor()
    assert {*api.summary(model), *doctor, *doctor["targets"]["portable"], *doctor["devices"]["host"]} <= described


# shape of `edgeq demo --json`; the numbers are made up
DEMO: dict[str, Any] = {
    "network": "SomeNet",
    "device": {"model": "Some CPU", "cores": 4, "os": "Linux", "features": ["avx2", "avx_vnni"]},
    "versions": {"edgeq": "9.9", "torch": "9.9"},
    "report": "out/report.html",
    "float_metric": {"top1_agreement": 1.0, "logit_sqnr_db": None},
    "qdq_metric": {"top1_agreement": 0.9375, "logit_sqnr_db": 21.04},
    "backends": {
        name: {
            "max_lsb": lsb,
            "exact_share": share,
            "metric": {"top1_agreement": 0.9375, "logit_sqnr_db": 20.96},
            "latency_ms": {"int8": int8, "float": floating},
            "integer_ops": 66,
            "table_ops": 0,
            "eligible_ops": 0,
            "float_ops": 1,
        }
        for name, lsb, share, int8, floating in (
            ("litert", 0.0, 1.0, 10.0, 25.0),
            ("tvm", 1.0, 0.99999, 30.0, 20.0),
            ("coreml", 0.0, 1.0, None, None),
        )
    },
}


def test_demo_table_invents_nothing(tool: Any) -> None:
    written = tool("update_readme").table(DEMO)
    lines = written.splitlines()
    assert "| LiteRT | 0 | 100 % | 0.9375 | 21.0 | 10.0 | 25.0 | 2.50× | 66 / 0 / 0 / 1 |" in lines
    assert "| TVM | 1 | 99.99 % | 0.9375 | 21.0 | 30.0 | 20.0 | 0.67× | 66 / 0 / 0 / 1 |" in lines
    assert "| Core ML | 0 | 100 % | 0.9375 | 21.0 | – | – | – | 66 / 0 / 0 / 1 |" in lines
    assert "| float network |  |  | 1 | ∞ |  |  |  |  |" in lines
    assert lines[-1] == "SomeNet on Some CPU, 4 cores with avx2 and avx_vnni; edgeq 9.9, torch 9.9."


def test_demo_table_replaces_the_former_one_and_nothing_else(tool: Any) -> None:
    insert = tool("markers").insert
    text = README.read_text(encoding="utf-8")
    once = insert(text, "update_readme.py", "FORMER")
    again = insert(once, "update_readme.py", "LATTER")
    assert "FORMER" not in again
    assert again.replace("LATTER", "FORMER") == once
    before, _, rest = text.partition("<!-- written by tools/update_readme.py -->")
    assert once.startswith(before)
    assert once.endswith(rest.partition("<!-- end of what tools/update_readme.py writes -->")[2])
    with pytest.raises(ValueError, match="no place"):
        insert("no markers", "update_readme.py", "")
