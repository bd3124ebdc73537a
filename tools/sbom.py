"""Write edgeq/sbom.json, the software bill of materials in the wheel: CycloneDX 1.6, every package that `[all]` brings.

python tools/sbom.py            in an environment with edgeq[dev] installed from constraints.txt
"""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import Distribution
from typing import Any

from licences import ROOT, closure, licence
from markers import write
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = ROOT / "edgeq" / "sbom.json"


def bill() -> dict[str, Any]:
    """The whole bill, without a date or a serial number, so that the same versions give the same bytes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = f"pkg:pypi/edgeq@{project['version']}"
    everything = closure("all")
    needed = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": own,
                "name": "edgeq",
                "version": project["version"],
                "purl": own,
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": [_component(name, package) for name, package in everything.items()],
        "dependencies": [{"ref": own, "dependsOn": [_reference(n, everything[n]) for n in sorted(needed)]}],
    }


def _reference(name: str, package: Distribution) -> str:
    return f"pkg:pypi/{name}@{package.version.partition('+')[0]}"


def _component(name: str, package: Distribution) -> dict[str, Any]:
    told = licence(package)
    reference = _reference(name, package)
    stated = {"expression": told.name} if told.stated == "expression" else {"license": {"name": told.name}}
    return {
        "type": "library",
        "bom-ref": reference,
        "name": told.package,
        "version": told.version,
        "purl": reference,
        **({"licenses": [stated]} if told.name else {}),
    }


def main() -> None:
    """Write the file."""
    write(FILE, json.dumps(bill(), indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
