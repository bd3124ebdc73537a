"""What a person is told: mistakes and limits as sentences, and how far long work is."""

from __future__ import annotations

from collections.abc import Callable

# what long work reports: stage, steps done, steps in total where known; `<stage>: <result>` ends a stage with what came of it
Progress = Callable[[str, int, int | None], None]


class EdgeqError(Exception):
    """A mistake or a limit the user can act on: one sentence naming what, where and what to do."""


class EdgeqWarning(UserWarning):
    """What a user should hear although the work goes on: one sentence; the command line shows it on stderr."""
