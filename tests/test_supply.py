"""What edgeq brings along is known: versions, licences, hashes, a bill of materials in the wheel, and no network client."""

from __future__ import annotations

import ast
import json
import os
import re
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clone import built, cloned
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINNED = re.compile(r"(?m)^(?:# )?([\w.-]+)==([^ \n]+)")

CLIENTS = {
    "aiohttp", "asyncio", "ftplib", "http", "httpx", "huggingface_hub", "imaplib", "kagglehub", "nntplib", "paramiko",
    "poplib", "requests", "smtplib", "socket", "socketserver", "ssl", "telnetlib", "urllib", "urllib3", "websockets",
    "xmlrpc", "adbutils", "tvm.rpc",
}  # fmt: skip

# file → what it imports, all of it for devices that the user names
ALLOWED = {
    "edgeq/devices/adb.py": {"adbutils", "socket"},  # talks to adb's server on this machine
    "edgeq/backends/tvm/server.py": {"socket", "tvm.rpc"},  # asks whether a server answers; the session is TVM's
}


def pinned() -> dict[str, str]:
    """Name → version in constraints.txt; torch stands in its comment, without a hash."""
    found = PINNED.findall((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    return {canonicalize_name(name): version for name, version in found}


def listed() -> list[dict[str, str]]:
    """Name → version in each table of docs/licences.md: of [all], and of development."""
    parts = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8").split("\n## ")[1:3]
    rows = [re.findall(r"(?m)^\| ([\w.-]+) \| (\d[^ ]*) \|", part) for part in parts]
    return [{canonicalize_name(name): version for name, version in table} for table in rows]


def bill() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "edgeq" / "sbom.json").read_text(encoding="utf-8"))
    return found


def test_every_pinned_package_has_its_licence_on_the_page() -> None:
    brought, developing = listed()
    assert brought.keys().isdisjoint(developing)
    assert {**brought, **developing} == pinned(), "docs/licences.md is stale: run python tools/licences.py"


def test_every_direct_dependency_is_pinned_and_on_the_page() -> None:
    brought, developing = listed()
    extras = PROJECT["project"]["optional-dependencies"]
    for extra, texts in {"": PROJECT["project"]["dependencies"], **extras}.items():
        for needed in map(Requirement, texts):
            name = canonicalize_name(needed.name)
            if name != "edgeq":
                known = {**brought, **developing} if extra == "dev" else brought
                assert name in known, f"{name} of [{extra}] is not on the page: run python tools/licences.py"
                assert needed.specifier.contains(pinned()[name])


def test_every_package_but_torch_has_hashes() -> None:
    text = re.sub(r"(?m)^#.*\n", "", (ROOT / "constraints.txt").read_text(encoding="utf-8")).replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert {canonicalize_name(first.partition("==")[0]) for first, *_ in lines} == pinned().keys() - {"torch"}
    for first, *hashes in lines:
        assert hashes, first
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), first


def test_the_bill_names_what_the_page_names() -> None:
    found = bill()
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    assert {canonicalize_name(c["name"]): c["version"] for c in found["components"]} == listed()[0]
    assert found["metadata"]["component"]["version"] == PROJECT["project"]["version"]
    references = {c["bom-ref"] for c in found["components"]}
    assert len(references) == len(found["components"])
    assert all(set(d["dependsOn"]) <= references for d in found["dependencies"])


def test_a_licence_is_taken_from_the_most_exact_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages written here, as their metadata is found in the wild."""
    from importlib.metadata import Distribution

    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from licences import licence

    def made(metadata: str, text: str = "") -> tuple[str | None, str]:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}" / "some-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: some\nVersion: 1.0\n{metadata}")
        (folder / "RECORD").write_text("some-1.0.dist-info/LICENSE,,\nsome/licence_table.py,,\n")
        (folder / "LICENSE").write_text(text)
        found = licence(Distribution.at(folder))
        return found.name, found.stated

    assert made("License-Expression: MIT\nLicense: other\n") == ("MIT", "expression")
    assert made("License: Apache 2.0\nClassifier: License :: OSI Approved :: BSD License\n") == ("Apache 2.0", "field")
    assert made("License: UNKNOWN\nClassifier: License :: OSI Approved :: BSD License\n") == (
        "BSD License",
        "classifier",
    )
    mit = "Permission is hereby granted, free of charge, \nto any person obtaining a copy of this software"
    assert made("License: UNKNOWN\nClassifier: License :: OSI Approved\n", mit) == ("MIT", "file")
    assert made("", "Apache License\n   Version 2.0, January 2004") == ("Apache-2.0", "file")
    assert made("License: UNKNOWN\n", "All rights reserved.") == (None, "")


def test_the_wheel_carries_the_bill(tmp_path: Path) -> None:
    source = cloned(tmp_path / "source")
    # what the wheel holds is asked here, and not what it compiles
    (source / "setup.py").write_text("from setuptools import setup\n\nsetup()\n")
    with zipfile.ZipFile(built(source, "wheel", tmp_path / "wheel")) as packed:
        assert json.loads(packed.read("edgeq/sbom.json")) == bill()


def sources() -> Iterator[Path]:
    """What the wheel holds of Python."""
    yield from (
        Path(at) / name
        for at, _, names in os.walk(ROOT / "edgeq", followlinks=True)
        for name in names
        if name.endswith(".py")
    )


def imported(source: str) -> set[str]:
    """Modules that a file imports anywhere in it, by statement or by import_module("name")."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and node.args and _called(node) in ("import_module", "__import__"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return found


def _called(call: ast.Call) -> str:
    """Name of the function or method."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def clients(source: str) -> set[str]:
    """The network clients among them."""
    names = imported(source)
    return {c for c in CLIENTS if any(name == c or name.startswith(f"{c}.") for name in names)}


def test_no_network_client_is_imported_but_for_named_devices() -> None:
    found = {str(path.relative_to(ROOT)): clients(path.read_text(encoding="utf-8")) for path in sources()}
    assert len(found) > 100
    assert {path: names for path, names in found.items() if names} == ALLOWED


@pytest.mark.parametrize(
    ("source", "client"),
    [
        ("import urllib.request", "urllib"),
        ("def f():\n    from http.client import HTTPSConnection", "http"),
        ("from importlib import import_module\nimport_module('requests.sessions')", "requests"),
        ("from tvm import rpc", "tvm.rpc"),
        ("import socket as s", "socket"),
    ],
)
def test_a_client_is_seen_wherever_it_is_imported(source: str, client: str) -> None:
    assert clients(source) == {client}
