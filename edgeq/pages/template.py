"""A template of this folder, filled and written as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeq import whole
from edgeq.pages import words
from edgeq.spec import EdgeqError

SAID = ("title", "number", "plain", "share", "percent", "decibel", "ap", "signed", "scaled", "duration")


def write(template: str, contents: Mapping[str, Any], path: Path) -> Path:
    """Write `template` filled with `contents` to `path`, whole or not at all; returns `path`.

    Raises:
        EdgeqError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise EdgeqError("the report needs jinja2: pip install 'edgeq[report]'") from error
    environment = Environment(
        loader=PackageLoader("edgeq.pages", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update({name: getattr(words, name) for name in SAID})
    text = environment.get_template(template).render(contents)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole.file(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def embedded(value: Any) -> str:
    """`value` as compact JSON that is safe inside a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
