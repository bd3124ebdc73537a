"""What the house's sources may not outgrow: a file past these lengths has two reasons to exist, a function two thoughts."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("edgeq", "calib", "backends", "tools", "tests", "device_tests")
FILE, CLASS, FUNCTION = 500, 300, 60  # lines


def sources() -> Iterator[tuple[str, str]]:
    """Path and text of each file of the rooms; links between them are not followed."""
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def longer(where: str, source: str) -> dict[str, int]:
    """What of a file is beyond its limit, by name, with its lines; a docstring counts, decorators do not."""
    found = {where: len(source.splitlines())} if len(source.splitlines()) > FILE else {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > (CLASS if isinstance(node, ast.ClassDef) else FUNCTION):
                found[f"{where}: {node.name}"] = lines
    return found


def test_nothing_is_longer_than_it_may_be() -> None:
    found = {name: lines for where, source in sources() for name, lines in longer(where, source).items()}
    assert found == {}


def test_what_is_too_long_is_found_wherever_it_stands() -> None:
    method = ["    @property", "    async def method(self):", *["        pass"] * FUNCTION]
    source = "\n".join(["class Large:", *method, *["    x = 0"] * (CLASS - len(method))])
    assert longer("a.py", source) == {"a.py: Large": CLASS + 1, "a.py: method": FUNCTION + 1}
    assert longer("a.py", "\n" * FILE) == {} and longer("a.py", "\n" * (FILE + 1)) == {"a.py": FILE + 1}
    assert longer("a.py", "\n".join(["def function():", *["    pass"] * (FUNCTION - 1)])) == {}
