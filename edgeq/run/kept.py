"""What an interrupted command has finished: kept beside the model, under a hash of all it depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeq.graph.store import write_json
from edgeq.schema import load as read_json
from edgeq.spec import EdgeqError


class Kept:
    """Finished parts by name, in `folder`; the same command finds them again, another one does not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, key: str) -> dict[str, Any] | None:
        """The part called `name`, where it was made under the same `key`."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            found = read_json(path, "")
        except EdgeqError:  # damaged: the part is made again
            return None
        fits = isinstance(found, dict) and found.get("key") == key and isinstance(found.get("found"), dict)
        return found["found"] if fits else None

    def keep(self, name: str, key: str, found: dict[str, Any]) -> None:
        """Write a finished part; where nothing can be written, an interruption loses it."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._path(name), {"key": key, "found": found})

    def once(self, name: str, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part called `name`, from an interrupted command or made now."""
        found = self.get(name, key)
        if found is None:
            self.keep(name, key, found := make())
        return found

    def forget(self) -> None:
        """The command is done, and its results are written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{slug(name)}.json"


def slug(name: str) -> str:
    """A device's or backend's name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.@-]+", "-", name).strip("-")


def digest(*parts: object) -> str:
    """Hash of plain values, bytes, and the content of paths (a folder's files by name)."""
    made = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            made.update(hashlib.sha256(piece).digest())
    return made.hexdigest()[:32]


def _pieces(part: object) -> list[bytes]:
    if isinstance(part, bytes):
        return [part]
    if isinstance(part, Path):
        files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
        return [piece for file in files for piece in (file.name.encode(), file.read_bytes())]
    return [json.dumps(part, sort_keys=True, default=str).encode()]
