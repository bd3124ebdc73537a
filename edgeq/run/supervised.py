"""A command in a process of its own: what a converter takes down with it is one runtime's row, and the others go on."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STATE = "EDGEQ_SUPERVISED"  # path of the file through which the two processes speak
PR_SET_PDEATHSIG = 1  # linux/prctl.h: signal to this process when its parent ends
ASKED = ("SIGINT", "SIGTERM", "SIGHUP")  # signals that somebody sent, which no runtime died of


def supervised(command: Sequence[str]) -> int:
    """Run `command` until no runtime ends it; returns its exit code, 128 + signal where a signal ended it.

    Where it dies while it lowers for one runtime, by a signal or as native code that calls exit, it is run again and `died`
    tells it so. Ctrl-C reaches both processes;
    SIGTERM and SIGHUP are handed on.
    """
    dead: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.json"
        while True:
            state.write_text(json.dumps({"died": dead}))
            status = _waited_for(command, {**os.environ, STATE: str(state)})
            busy = json.loads(state.read_text()).get("busy")
            if busy is None and status >= 0:
                return status
            if busy is None or busy in dead or manner(status).removeprefix("by ") in ASKED:
                return 128 - status if status < 0 else 3
            dead[busy] = (
                f"{busy}'s converter ended its process {manner(status)}; keep the layers of its unusual operators in float "
                "(fp32 in plan.json), or export to another runtime"
            )


def died() -> dict[str, str]:
    """Runtime → sentence, of those whose converter ended this command's process before; empty where nobody supervises."""
    found: dict[str, str] = _told().get("died", {})
    return found


@contextlib.contextmanager
def lowering(runtime: str) -> Iterator[None]:
    """While it lasts, the end of this process is `runtime`'s doing."""
    path = os.environ.get(STATE)
    if path is None:
        yield
        return
    told = _told()
    Path(path).write_text(json.dumps({**told, "busy": runtime}))
    try:
        yield
    finally:
        Path(path).write_text(json.dumps(told))


def is_supervised() -> bool:
    """Whether this process has a parent that looks after it; then it ends when the parent does."""
    if STATE not in os.environ:
        return False
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return True


def manner(status: int) -> str:
    """How a process ended: by a signal, or with a status."""
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


def _told() -> dict[str, Any]:
    path = os.environ.get(STATE)
    found: dict[str, Any] = json.loads(Path(path).read_text()) if path else {}
    return found


def _waited_for(command: Sequence[str], environment: dict[str, str]) -> int:
    """Exit status of `command`, as subprocess gives it."""
    process = subprocess.Popen(command, env=environment)
    kept = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None)}  # the terminal sends it to the child too
    for name in ASKED[1:]:
        if number := getattr(signal, name, None):
            kept[number] = signal.signal(number, lambda sent, _: process.send_signal(sent))
    try:
        return process.wait()
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
