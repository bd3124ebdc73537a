"""Where edgeq keeps what outlives a command: the emulated Arm's root, built runners, measurements."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """`$EDGEQ_HOME`, else `$XDG_CACHE_HOME/edgeq`, else `~/.cache/edgeq`; not created here.

    In it: `arm64-root/`, `runners/<abi>/`, `measurements.sqlite`.
    """
    chosen = os.environ.get("EDGEQ_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "edgeq"
