"""An exception that nobody foresaw, in one sentence: where it arose in the user's network, and where its traceback lies."""

from __future__ import annotations

import datetime
import errno
import os
import re
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from edgeq.home import home
from edgeq.spec import EdgeqError

FULL = ("No space left on device", "PytorchStreamWriter failed writing", "os error 28")  # torch's and Rust's own errors
LARGE = ("File too large", "os error 27")
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
EMPTY = ("can't allocate memory", "out of memory", "std::bad_alloc")  # so do its allocators
LENGTH = 200  # characters of the exception's own words; the rest stands in the traceback


class Told(RuntimeError):
    """A fault whose sentence is known already, and whose traceback is kept."""


def beyond_the_machine(error: BaseException) -> str:
    """A sentence where the machine has no room left, which is no fault of edgeq's; else nothing."""
    said = str(error)
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or any(x in said for x in FULL):
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return f"{where}the disk is full; free some space, or write to another folder with --output"
    if any(x in said for x in LARGE):
        return "a file grows larger than this process may write (ulimit -f); raise the limit, or write to another disk"
    if isinstance(error, OSError) and error.errno in CLOSED:
        return f"{error.filename or 'a folder'}: cannot be written or read ({error.strerror}); name another folder"
    if isinstance(error, OSError) and error.errno == errno.EIO:
        return f"{error.filename or 'a file'}: the disk gives an input/output error; write to another disk"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(x in said for x in EMPTY)):
        return "this computer's memory does not suffice; use smaller batches, or close other programs"
    return ""


def sentence(error: BaseException, verb: str) -> str:
    """What happened, at which layer and line of the user's as far as they are known; keeps the traceback in a file."""
    if isinstance(error, Told):
        return str(error)
    said = " ".join(str(error).split("\n\nWhile executing")[0].split())
    words = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if len(words) > LENGTH:
        words = f"{words[:LENGTH]}…"
    at = "".join(f" {part}" for part in (_where(error),) if part)
    return f"{verb} failed{at} ({words}); this is a fault in edgeq, and {_kept(error)}"


def _where(error: BaseException) -> str:
    """Layer, operator and source line of the graph's node that the innermost frame was busy with."""
    fx = sys.modules.get("torch.fx")
    if fx is None:
        return ""
    for caught in _chain(error):
        for frame, _ in reversed(list(traceback.walk_tb(caught.__traceback__))):
            nodes = [value for value in frame.f_locals.values() if isinstance(value, fx.Node)]
            named = [n for name, n in frame.f_locals.items() if name in ("node", "n") and isinstance(n, fx.Node)]
            if nodes:
                return _node((named or nodes)[0])
    return ""


def _node(node: Any) -> str:
    """`at layer conv1 (aten.conv2d.default, net.py:12)`."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0].removeprefix("L['self']").strip(".") if stack else ""
    details = [str(node.target)] if node.op == "call_function" else []
    details += [line] if (line := source_line(node.meta.get("stack_trace") or "")) else []
    told = f" ({', '.join(details)})" if details else ""
    return f"at layer {path or node.name}{told}"


def source_line(stack: str) -> str:
    """`file.py:12` of the innermost frame that is the user's own, out of a node's stack trace; empty without one."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', stack)
    own = [(file, line) for file, line in frames if "site-packages" not in file]
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""


def _chain(error: BaseException) -> list[BaseException]:
    """The exception and its causes, the first cause first."""
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__ or current.__context__
    return found[::-1]


def _kept(error: BaseException) -> str:
    """Write the traceback where edgeq keeps what outlives a command, else among the temporary files."""
    text = "".join(traceback.format_exception(error))
    name = f"{datetime.datetime.now():%Y%m%d-%H%M%S-%f}-{os.getpid()}.txt"
    for kept in (True, False):
        try:
            folder = home() / "faults" if kept else Path(tempfile.gettempdir())
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        except (OSError, EdgeqError):
            continue
        return f"its traceback lies in {folder / name}"
    return f"its traceback could not be written anywhere: {' '.join(text.split())}"
