"""The tvm package, imported where it is needed."""

from __future__ import annotations

from typing import Any

from edgeq.graph.quiet import quiet
from edgeq.spec import EdgeqError


def tvm_package() -> Any:
    """The tvm package.

    Raises:
        EdgeqError: it is not installed.
    """
    try:
        with quiet():
            import tvm
            import tvm.relax
    except ImportError as error:
        raise EdgeqError("the tvm backend needs apache-tvm: pip install 'edgeq[tvm]'") from error
    return tvm
