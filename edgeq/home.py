"""Where edgeq keeps what outlives a command: the emulated Arm's root, built runners, measurements."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from pathlib import Path

from edgeq.spec import EdgeqError

OFF = "off"


def home() -> Path:
    """`$EDGEQ_HOME`, else `$XDG_CACHE_HOME/edgeq`, else `~/.cache/edgeq`; not created here.

    In it: `arm64-root/`, `runners/<abi>/`, `measurements.sqlite`, `faults/`. `EDGEQ_HOME=off` keeps nothing: what is written
    goes to a folder that ends with the process.

    Raises:
        EdgeqError: EDGEQ_HOME names the home of a user that there is not, or there is no home at all.
    """
    chosen = os.environ.get("EDGEQ_HOME")
    try:
        if chosen == OFF:
            return _passing()
        if chosen:
            return Path(chosen).expanduser().absolute()
        cache = os.environ.get("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "edgeq"
    except RuntimeError as error:  # pathlib's, where a home directory is not known
        raise EdgeqError(
            f"{f'EDGEQ_HOME={chosen}' if chosen else 'the home directory'} cannot be found: set EDGEQ_HOME to a folder, or "
            "to off to keep nothing"
        ) from error


@functools.cache
def _passing() -> Path:
    made = tempfile.mkdtemp(prefix="edgeq-home-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)
