"""The command line: every verb calls the function of the same name in edgeq.api."""

from __future__ import annotations

import ctypes
import os
import sys

import typer

from edgeq.cli import lidar, search
from edgeq.cli.verbs import app

__all__ = ["app", "main", "search"]

app.add_typer(lidar.app, name="lidar")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def main() -> None:
    """Entry point. Exit codes: 2 for a user's mistake, 3 for a fault in edgeq, each with one sentence; 130 after Ctrl-C."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    _reuse_memory()
    from edgeq import fault
    from edgeq.run.supervised import is_supervised, supervised
    from edgeq.spec import EdgeqError

    if not is_supervised() and "export" in sys.argv[1:2]:  # its converters are native code, which may end the process
        raise SystemExit(supervised([sys.executable, *sys.orig_argv[1:]]))
    try:
        app()  # typer itself answers Ctrl-C with exit code 130 and a closed pipe with 1; what was finished is untouched
    except EdgeqError as error:
        typer.echo(f"edgeq: {error}", err=True)
        raise SystemExit(2) from None
    except Exception as error:  # the last net: no traceback on the user's terminal
        full = fault.beyond_the_machine(error)
        verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "edgeq")
        typer.echo(f"edgeq: {full or fault.sentence(error, verb)}", err=True)
        raise SystemExit(2 if full else 3) from None


def _reuse_memory() -> None:
    """Let glibc keep a freed tensor's pages for the next one, where it would return them and have each cleared anew.

    A quarter of the processor time of calibrating PointPillars, whose maps are tens of megabytes; without glibc nothing changes.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            libc.mallopt(option, 2**31 - 1)
