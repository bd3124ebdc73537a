"""Calibrate a PyTorch model once, run it as the same integers on every edge runtime."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from edgeq.api import compare, diff, export, profile, quantize, report, verify
    from edgeq.graph.package import QuantizedModel, load
    from edgeq.spec import Artifact, EdgeqError
    from edgeq.task import Task

__all__ = [
    "Artifact",
    "EdgeqError",
    "QuantizedModel",
    "Task",
    "__version__",
    "compare",
    "diff",
    "export",
    "load",
    "profile",
    "quantize",
    "report",
    "verify",
]

_HOMES = {
    "Artifact": "edgeq.spec",
    "EdgeqError": "edgeq.spec",
    "QuantizedModel": "edgeq.graph.package",
    "load": "edgeq.graph.package",
    "Task": "edgeq.task",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import edgeq` stays fast."""
    if name == "__version__":
        return version("edgeq")
    if name not in __all__:
        raise AttributeError(f"module 'edgeq' has no attribute {name!r}")
    return getattr(import_module(_HOMES.get(name, "edgeq.api")), name)
