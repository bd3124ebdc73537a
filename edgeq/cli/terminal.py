"""What a verb shows: progress on stderr, its result on stdout."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.progress import Progress


class Bar:
    """Progress on a terminal: one line a stage."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.stage: str | None = None
        self.task: Any = None

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if self.stage is not None and stage.startswith(f"{self.stage}: "):  # the same stage with its result
            self.progress.update(self.task, description=stage)
        elif stage != self.stage:
            self.finish()
            self.stage, self.task = stage, self.progress.add_task(stage, total=total)
        self.progress.update(self.task, completed=done, total=total)

    def finish(self, failed: bool = False) -> None:
        """The stage is over: its spinner stops; one that failed goes, as the sentence behind it says what happened."""
        if self.task is not None:
            last = self.progress.tasks[-1]
            known = last.total or max(last.completed, 1)
            self.progress.update(self.task, completed=known, total=known, visible=not failed)


class Lines:
    """Progress where stderr is a file or a pipe: a line when a stage begins, one every ten seconds, one when it is over."""

    EVERY_S = 10.0

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.stage: str | None = None
        self.began = self.said = 0.0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self.stage is not None and stage.startswith(f"{self.stage}: "):  # the same stage with its result
            self.say(stage)
        elif stage != self.stage:
            self.finish()
            self.stage, self.began, self.said = stage, now, now
            self.say(f"{stage} …")
        elif now - self.said >= self.EVERY_S:
            self.said = now
            self.say(f"{stage} {done}/{total}" if total else f"{stage} … {now - self.began:.0f} s")

    def finish(self, failed: bool = False) -> None:
        """The stage is over, and how long it took."""
        if self.stage is not None:
            self.say(f"{self.stage} {'failed after' if failed else 'done in'} {time.monotonic() - self.began:.1f} s")


class Progressing:
    """Context manager giving a progress function that draws, or writes lines, on stderr.

    What a task file or a library prints in the body goes to stderr as well: stdout is for the result alone.
    """

    def __enter__(self) -> Bar | Lines:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        sys.stdout.flush()
        self.stdout, self.printed = os.dup(1), contextlib.redirect_stdout(sys.stderr)
        os.dup2(2, 1)
        self.printed.__enter__()
        # a stderr of its own, so that silencing the converters does not silence the bar
        stream = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=Console(file=stream, stderr=True))
        self.shown, self.said = warnings.showwarning, set[str]()
        warnings.showwarning = self._warned
        self.shows: Bar | Lines
        if stream.isatty():
            self.progress.start()
            self.shows = Bar(self.progress)
        else:
            self.shows = Lines(self._say)
        return self.shows

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        warnings.showwarning = self.shown
        self.shows.finish(failed=kind is not None)
        if isinstance(self.shows, Bar):
            self.progress.stop()
        self.printed.__exit__(None, None, None)
        with contextlib.suppress(OSError):  # C's own buffer, written while stdout is still stderr
            ctypes.CDLL(None).fflush(None)
        os.dup2(self.stdout, 1)
        os.close(self.stdout)

    def _say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _warned(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Show a warning of edgeq as a sentence above the bar, once; any other as Python does."""
        from edgeq.spec import EdgeqWarning

        if not issubclass(category, EdgeqWarning):
            self.shown(message, category, filename, lineno, file, line)
        elif str(message) not in self.said:
            self.said.add(str(message))
            self._say(f"edgeq: warning: {message}")


def show(found: dict[str, Any], as_json: bool, render: Any) -> None:
    """Print what a verb found: one JSON object, or what `render` makes of it."""
    if as_json:
        from edgeq.graph.store import dumps

        sys.stdout.write(dumps(found) + "\n")
        return
    from rich.console import Console

    console = Console()
    shown = render(found)
    for part in shown if isinstance(shown, list) else [shown]:
        console.print(part)


def end(found: dict[str, Any]) -> None:
    """Exit code 1 where a condition of --fail-if holds or a runtime failed, 3 where a fault in edgeq is why."""
    for name, texts in found["failing"].items():
        typer.echo(f"edgeq: {' and '.join(texts)} {'hold' if len(texts) > 1 else 'holds'} for {name}", err=True)
    errors = [row for row in found["backends"].values() if "error" in row or "metric_error" in row]
    if errors or found["failing"]:
        raise typer.Exit(3 if any(row.get("fault") for row in errors) else 1)
