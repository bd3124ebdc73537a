"""A verb in a process of its own that dies, is interrupted, or meets a broken disk at its n-th file operation.

The operations are counted by Python's own audit events, so that the points are enumerated and not guessed. A verb runs in a
fork of this process, which has imported what it needs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeq.run.supervised import STATE

EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "broken": errno.EIO}
Fault = Literal["kill", "terminate", "interrupt", "full", "read-only", "broken"]


@dataclass(frozen=True)
class Ended:
    """How a verb ended: its exit code (negative: by a signal), what it said, and how many operations there were."""

    code: int
    said: str
    operations: int


def run(command: Sequence[str], root: Path, fault: Fault | None = None, at: int = 0) -> Ended:
    """`edgeq COMMAND`; with `fault`, at its operation number `at` (counted from 0) on files below `root`.

    A broken disk stays broken from there on, as it would.
    """
    said, counted = root.parent / "said", root.parent / "counted"
    pid = os.fork()
    if pid == 0:
        _child(command, root, fault, at, said, counted)
    _, status = os.waitpid(pid, 0)
    return Ended(os.waitstatus_to_exitcode(status), said.read_text(errors="replace"), int(counted.read_text() or 0))


def _child(command: Sequence[str], root: Path, fault: Fault | None, at: int, said: Path, counted: Path) -> None:
    code = 70
    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        tally = os.open(counted, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
        sys.argv = ["edgeq", *command]
        os.chdir(root)
        seen = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == "open":
                path, _, flags = arguments
                if not isinstance(flags, int) or not flags & WRITES:
                    return
            elif event in EVENTS:
                path = arguments[0]
            else:
                return
            if not isinstance(path, (str, bytes)) or not Path(os.fsdecode(path)).absolute().is_relative_to(root):
                return
            number, seen = seen, seen + 1
            os.pwrite(tally, str(seen).encode(), 0)
            if fault in SIGNALS and number == at:
                os.kill(os.getpid(), SIGNALS[fault])
            if fault in ERRORS and number >= at:
                raise OSError(ERRORS[fault], os.strerror(ERRORS[fault]), os.fsdecode(path))

        # the process that does the work, where `export` would start one to look after
        state = root.parent / "state.json"
        state.write_text("{}")
        os.environ[STATE] = str(state)
        from edgeq import cli

        sys.addaudithook(watch)
        with contextlib.suppress(Exception):
            cli.main()
            code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
