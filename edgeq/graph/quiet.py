"""Keep converters' chatter off the user's terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Final

SAID: Final = 1 << 20  # bytes of what is printed that anybody reads


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Silence stdout, stderr, logging and warnings, native code included, while the body runs.

    Gives a function that returns what was printed so far, for where native code says the cause nowhere else.
    Works on the file descriptors, because the converters print from C++ too, and on Python's streams, which are others in a
    notebook. If the body raises, nothing is lost:
    the exception carries what there is to say.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    level = logging.root.manager.disable
    with tempfile.TemporaryFile() as sink:
        try:
            os.dup2(sink.fileno(), 1)
            os.dup2(sink.fileno(), 2)
            logging.disable(logging.CRITICAL)
            with (
                warnings.catch_warnings(),
                os.fdopen(os.dup(sink.fileno()), "w", buffering=1, errors="replace") as text,
                contextlib.redirect_stdout(text),
                contextlib.redirect_stderr(text),
            ):
                warnings.simplefilter("ignore")
                yield lambda: os.pread(sink.fileno(), SAID, 0).decode(errors="replace")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            logging.disable(level)
            for fd, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, fd)
                os.close(copy)
