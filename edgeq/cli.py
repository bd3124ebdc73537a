"""The command line: every verb calls the function of the same name in edgeq.api."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from edgeq import backends

FIRST = next(iter(backends.RUNTIMES))
TUNED = ", ".join(runtime.title for runtime in backends.RUNTIMES.values() if runtime.tunes)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

if TYPE_CHECKING:
    from rich.progress import Progress

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Calibrate a PyTorch model once, run it as the same integers on every edge runtime.\n\n"
    "A first run:  [bold]edgeq demo[/bold].  Your own network: copy a task file from examples/, then\n\n"
    f"edgeq quantize my_task.py -o out;  edgeq export out --to {FIRST};  edgeq verify out;  edgeq profile out",
)

Folder = Annotated[Path, typer.Argument(help="Folder written by edgeq quantize.")]
MEASURED = "Folder written by edgeq quantize, or an exported file in it."
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout; progress goes to stderr.")]
To = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        help=f"Backend: {', '.join(backends.RUNTIMES)}; for other machines {', '.join(backends.VARIANTS)}; repeat for several.",
        show_default=False,
    ),
]
Device = Annotated[str, typer.Option(help="Where to run; `edgeq doctor` lists what is reachable.")]
FailIf = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-if",
        help="Exit with 1 when this holds for any backend: a name, a comparison, a number; repeat for several. export: "
        '"float_ops>0", "size_bytes>4e6"; verify: "max_lsb>1", "sqnr_db<25", a metric of the task; profile: "speedup<1.2", '
        '"p90_ms>20".',
        show_default=False,
    ),
]
TaskFile = Annotated[
    Path | None,
    typer.Option(
        "--task",
        help="The task file to take batches and metric from. Without it the one that was quantized is run, if it lies where "
        "it lay and was not changed.",
        show_default=False,
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads the runtime may use.")]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"edgeq {version('edgeq')}")
        raise typer.Exit


@app.callback()
def _edgeq(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What stands before a verb."""


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write to; default: demo-out or demo-lidar-out.")
    ] = None,
    lidar: Annotated[
        bool, typer.Option("--lidar", help="A 3D detector on lidar scenes by LiDAR-PTQ, drawn from above.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a real network, export it to all four runtimes, check, time and report it (some minutes)."""
    from edgeq import demos
    from edgeq.pages.tables import demo_table, lidar_table

    with _progress() as progress:
        if lidar:
            found = demos.lidar(output or Path("demo-lidar-out"), progress=progress)
        else:
            found = demos.image(output or Path("demo-out"), progress=progress)
    _print(found, as_json, lidar_table if lidar else demo_table)


@app.command()
def quantize(
    task: Annotated[Path, typer.Argument(help="Task file: model(), example_inputs(), calibration(); see examples/.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write; default: the task's name.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="How the numbers are chosen; `edgeq doctor` lists the recipes.")
    ] = "default",
    target: Annotated[
        str, typer.Option(help=f"portable: one program for all runtimes; or {', '.join(backends.RUNTIMES)}, simulated.")
    ] = "portable",
    precision: Annotated[
        str, typer.Option(help="w8a8, w8 (weights only), fp32; w4a8, w8a4, w6a6 … with --target simulated.")
    ] = "w8a8",
    plan: Annotated[
        Path | None, typer.Option(help="An edited plan.json: layer → precision; overrides recipe, target, precision.")
    ] = None,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-float",
            help="Layers that stay in float: a layer's key, a module's path or a pattern, as 'head.*'; repeat for several.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate a network and write one quantized program."""
    from edgeq import api
    from edgeq.calib.workspace import beside
    from edgeq.pages.tables import quantized_table

    folder = (output or Path(task.stem)).absolute()
    try:
        with _progress() as progress:
            model = api.quantize(
                task,
                recipe=recipe,
                target=target,
                precision=precision,
                plan=plan,
                keep_float=keep_float or (),
                output=folder,
                progress=progress,
            )
    except KeyboardInterrupt:
        if beside(folder).is_dir():
            typer.echo(f"edgeq: {beside(folder)} keeps what is finished; the same command goes on from there", err=True)
        raise
    _print(api.summary(model), as_json, quantized_table)


@app.command()
def export(
    folder: Folder,
    to: To = None,
    io: Annotated[
        str | None,
        typer.Option(help="int8, uint8 or float inputs and outputs of a .tflite (default int8).", show_default=False),
    ] = None,
    channels_last: Annotated[
        bool | None,
        typer.Option(
            "--channels-last/--channels-as-they-are",
            help="Pixels of a .tflite's image in the order height, width, channels (default with --io uint8 and an image).",
            show_default=False,
        ),
    ] = None,
    bundle: Annotated[
        bool,
        typer.Option("--bundle", help="Also write FOLDER/bundle/BACKEND: a lidar detector with all that runs it."),
    ] = False,
    points: Annotated[
        Path | None,
        typer.Option(
            help="The bundle's golden frame: float32 rows of x, y, z, intensity, or .npy [N, 4 or more]; default: generated.",
            show_default=False,
        ),
    ] = None,
    tune: Annotated[
        int,
        typer.Option(
            min=0, help=f"{TUNED}: time so many schedules of each float kernel on this computer, and keep the best."
        ),
    ] = 0,
    fail_if: FailIf = None,
    as_json: AsJson = False,
) -> None:
    """Lower the program to one runtime or several, and say which operators run as integers."""
    from edgeq import api
    from edgeq.graph.package import load
    from edgeq.pages.tables import coverage_tables
    from edgeq.run.condition import conditions, holding
    from edgeq.run.each import each
    from edgeq.run.supervised import died
    from edgeq.spec import EdgeqError

    if not to:
        raise typer.BadParameter(
            f"name at least one backend: {', '.join(f'--to {name}' for name in backends.RUNTIMES)}"
        )
    if points is not None and not bundle:
        raise typer.BadParameter("--points is the golden frame of a bundle: add --bundle")
    failing_if = conditions(fail_if or (), "export")
    for name in to:
        backends.runtime_of(name)  # names the backends there are, before the first is exported
    with _progress() as progress:
        model = load(folder)

        def row(name: str) -> dict[str, Any]:
            progress(f"export {name}", 0, None)
            if name in died():
                raise EdgeqError(died()[name])
            made = api.coverage(
                api.export(model, name, io=io, channels_last=channels_last, tune=tune, progress=progress), model
            )
            if bundle:
                progress(f"bundle for {name}", 0, None)
                made["bundle"] = str(api.bundle(model, name, points=points))
            return made

        rows = each(list(dict.fromkeys(to)), "export", row)
    found = {"model": str(folder), "backends": rows, "failing": holding(failing_if, rows)}
    _print(found, as_json, coverage_tables)
    _end(found)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help=MEASURED)],
    to: To = None,
    device: Device = "host",
    batches: Annotated[int, typer.Option(min=1, help="Calibration batches to compare on.")] = 8,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers",
            help="Find the first layer where artefact and simulation part (exports prefixes; "
            "a runtime may fuse a prefix differently).",
        ),
    ] = False,
    task: TaskFile = None,
    fail_if: FailIf = None,
    threads: Threads = 1,
    junit: Annotated[
        Path | None,
        typer.Option(help="Also write JUnit XML to this file: a case a runtime, for CI services.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare each artefact with its runtime's simulation: largest difference in LSB, share equal, metric."""
    from edgeq import api
    from edgeq.pages.junit import write_junit
    from edgeq.pages.tables import parity_table
    from edgeq.spec import EdgeqError

    junit = junit.absolute() if junit is not None else None  # a task file may change the current folder
    try:
        with _resumable(), _progress() as progress:
            found = api.verify(
                folder,
                to=to or (),
                device=device,
                batches=batches,
                layers=layers,
                threads=threads,
                task=task,
                fail_if=fail_if or (),
                progress=progress,
            )
    except EdgeqError as error:
        if junit is not None:  # a CI service shows the sentence as the one case there is
            rows = {" ".join(to or ()) or "verify": {"error": str(error)}}
            write_junit({"model": folder.name, "backends": rows, "failing": {}, "skipped": {}}, junit)
        raise
    if junit is not None:
        write_junit(found, junit)
    _print(found, as_json, parity_table)
    _end(found)


@app.command()
def profile(
    folder: Annotated[Path | None, typer.Argument(help=MEASURED, show_default=False)] = None,
    to: To = None,
    device: Device = "host",
    threads: Threads = 1,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before timing starts.")] = 5,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs; the median is reported.")] = 30,
    cores: Annotated[
        str | None,
        typer.Option(help="Cores of the device to run on, as 4,5 for the big ones of a phone.", show_default=False),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Also write a trace for chrome://tracing or ui.perfetto.dev to this file.", show_default=False
        ),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="Measure nothing; put two profiles side by side: model folders, files of --json, numbers of measurements, "
            "each with :BACKEND or without.",
            metavar="A B",
            show_default=False,
        ),
    ] = None,
    fail_if: FailIf = None,
    as_json: AsJson = False,
) -> None:
    """Time each artefact, the float network on the same runtime beside it, and each operator where it can be seen."""
    from edgeq import api
    from edgeq.pages.tables import comparison_tables, latency_tables

    if compare is not None:
        if folder is not None:
            raise typer.BadParameter("--compare takes two profiles and measures no folder")
        _print(api.compare(*compare), as_json, comparison_tables)
        return
    if folder is None:
        raise typer.BadParameter("name a folder written by edgeq quantize, or two profiles to --compare")
    with _resumable(), _progress() as progress:
        found = api.profile(
            folder,
            to=to or (),
            device=device,
            threads=threads,
            warmup=warmup,
            runs=runs,
            cores=_cores(cores),
            trace=trace,
            fail_if=fail_if or (),
            progress=progress,
        )
    _print(found, as_json, latency_tables)
    _end(found)


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="Folder written by edgeq quantize, as it was.")],
    new: Annotated[Path, typer.Argument(help="Folder written by edgeq quantize, as it is now.")],
    as_json: AsJson = False,
) -> None:
    """What changed between two models: plan, numbers, operators, size, parity, metric, latency; 1 on a regression."""
    from edgeq import api
    from edgeq.pages.tables import diff_tables

    found = api.diff(old, new)
    _print(found, as_json, diff_tables)
    if found["regressions"]:
        raise typer.Exit(1)


@app.command()
def report(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Page to write; default: FOLDER/report.html.")
    ] = None,
    task: TaskFile = None,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page: accuracy, parity, coverage, latency, per-layer error."""
    from edgeq import api

    with _progress() as progress:
        progress("report", 0, None)
        page = api.report(folder, output=output, task=task)
    _print({"report": str(page)}, as_json, lambda found: found["report"])


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Which backends and devices work here, how to get the others, and which recipes and targets there are."""
    from edgeq import api
    from edgeq.pages.tables import doctor_tables

    _print(api.doctor(), as_json, doctor_tables)


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


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    """What Ctrl-C interrupts goes on where it was; says so."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("edgeq: every finished runtime is kept; the same command goes on from there", err=True)
        raise


def _end(found: dict[str, Any]) -> None:
    """Exit code 1 where a condition of --fail-if holds or a runtime failed, 3 where a fault in edgeq is why."""
    for name, texts in found["failing"].items():
        typer.echo(f"edgeq: {' and '.join(texts)} {'hold' if len(texts) > 1 else 'holds'} for {name}", err=True)
    errors = [row for row in found["backends"].values() if "error" in row or "metric_error" in row]
    if errors or found["failing"]:
        raise typer.Exit(3 if any(row.get("fault") for row in errors) else 1)


def _cores(text: str | None) -> list[int]:
    """`4,5` as numbers."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise typer.BadParameter(f"--cores {text}: write core numbers, as 4,5") from None


class _Bar:
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


class _Lines:
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


class _progress:
    """Context manager giving a progress function that draws, or writes lines, on stderr.

    What a task file or a library prints in the body goes to stderr as well: stdout is for the result alone.
    """

    def __enter__(self) -> _Bar | _Lines:
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
        self.shows: _Bar | _Lines
        if stream.isatty():
            self.progress.start()
            self.shows = _Bar(self.progress)
        else:
            self.shows = _Lines(self._say)
        return self.shows

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        warnings.showwarning = self.shown
        self.shows.finish(failed=kind is not None)
        if isinstance(self.shows, _Bar):
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


def _print(found: dict[str, Any], as_json: bool, render: Any) -> None:
    if as_json:
        from edgeq.graph.package import dumps

        sys.stdout.write(dumps(found) + "\n")
        return
    from rich.console import Console

    console = Console()
    shown = render(found)
    for part in shown if isinstance(shown, list) else [shown]:
        console.print(part)


if __name__ == "__main__":
    main()
