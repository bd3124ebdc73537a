"""A runtime is one folder of backends/: nothing outside it is code that names one."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeq.backends import RUNTIMES, found

ROOT = Path(__file__).resolve().parent.parent
NAMES = {word for r in RUNTIMES.values() for word in (r.name, r.title, r.module, r.package, r.runner) if word}
NAMED = re.compile("|".join(map(re.escape, sorted(NAMES))), re.IGNORECASE)

# what may name them, and why
ALLOWED = {
    "edgeq/backends/": "a runtime's own folder",
    "edgeq/runners/": "the programs that run artefacts on devices, one a runtime, and what they are built from",
    "edgeq/graph/arithmetic/": "rules of kernel sets, which a target names, so that the simulation needs no backend",
    "edgeq/graph/limits.py": "shapes that kernels insist on, which a target names",
}


def named(source: str) -> list[str]:
    """Imports, names and strings of a file that name a runtime; neither comments nor docstrings."""
    tree = ast.parse(source)
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [word for node in ast.walk(tree) if id(node) not in prose for word in words(node) if NAMED.search(word)]


def words(node: ast.AST) -> Iterator[str]:
    """What a node of the tree says itself."""
    for value in (getattr(node, field, None) for field in ("id", "attr", "name", "module", "arg", "value")):
        if isinstance(value, str):
            yield value


def test_a_folder_without_runtime_py_is_no_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `git checkout` leaves one where a backend was: __init__.py, or compiled files alone."""
    package = tmp_path / "some_backends"
    for name in ("first", "second", "shared", "left"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "alone.py").touch()
    (package / "left" / "__init__.py").unlink()
    (package / "left" / "__pycache__").mkdir()
    made = (
        "from edgeq.backends.runtime import Runtime\nRUNTIME = Runtime({!r}, 'A title', {}, 'a_module', 'a-package')\n"
    )
    (package / "first" / "runtime.py").write_text(made.format("first", 2))
    (package / "second" / "runtime.py").write_text(made.format("second", 1))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [(name, r.rank) for name, r in found([str(package)], "some_backends").items()] == [
        ("second", 1),
        ("first", 2),
    ]


def test_nothing_outside_the_backends_names_a_runtime() -> None:
    found: dict[str, list[str]] = {}
    for at, _, names in os.walk(ROOT / "edgeq", followlinks=True):
        for path in (Path(at) / name for name in names if name.endswith(".py")):
            where = path.relative_to(ROOT).as_posix()
            if not where.startswith(tuple(ALLOWED)) and (said := named(path.read_text(encoding="utf-8"))):
                found[where] = said
    assert not found


def test_no_page_names_a_runtime() -> None:
    pages = list((ROOT / "edgeq" / "pages").glob("*.html"))
    assert pages
    assert not [page.name for page in pages if NAMED.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("where", ALLOWED)
def test_what_may_name_a_runtime_does(where: str) -> None:
    """Else the exception is one too many."""
    path = ROOT / where
    files = [path] if path.is_file() else path.rglob("*.py")
    assert any(named(file.read_text(encoding="utf-8")) for file in files)


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize(
    "code",
    [
        "from edgeq.backends.{name} import run",
        "import {module}",
        "def f():\n    return '{title}'",
        "x = _{name}(1)",
        "f'--to {name}{{y}}'",
    ],
)
def test_a_name_is_seen_wherever_it_stands(code: str, runtime: object) -> None:
    fields = {field: getattr(runtime, field) for field in ("name", "module", "title")}
    assert named(code.format(**fields))
    assert not named(f'"""{fields["title"]}"""\n\n\ndef f():\n    """{fields["name"]}"""  # {fields["module"]}\n')
