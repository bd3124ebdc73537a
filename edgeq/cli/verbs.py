"""The verbs: each calls the function of its name in edgeq.api and shows what that found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeq import backends
from edgeq.cli.options import (
    MEASURED,
    AsJson,
    Data,
    Device,
    FailIf,
    Folder,
    KeepFloat,
    Settings,
    TaskFile,
    Threads,
    To,
    named,
)
from edgeq.cli.terminal import Progressing, end, show

FIRST = next(iter(backends.RUNTIMES))
TUNED = ", ".join(runtime.title for runtime in backends.RUNTIMES.values() if runtime.tunes)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Calibrate a PyTorch model once, run it as the same integers on every edge runtime.\n\n"
    "A first run:  [bold]edgeq demo[/bold].  Your own network: copy a task file from examples/, then\n\n"
    f"edgeq quantize my_task.py -o out;  edgeq export out --to {FIRST};  edgeq verify out;  edgeq profile out",
)


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
        Path | None, typer.Option("-o", "--output", help="Folder to write to; default: demo-out.")
    ] = None,
    lidar: Annotated[bool, typer.Option("--lidar", hidden=True)] = False,  # as `edgeq lidar demo` was called
    as_json: AsJson = False,
) -> None:
    """Quantize a real network, export it to all four runtimes, check, time and report it (some minutes)."""
    from edgeq import demos
    from edgeq.cli.lidar import demo as lidar_demo
    from edgeq.pages.tables import demo_table

    if lidar:
        lidar_demo(output or Path("demo-lidar-out"), as_json)
        return
    with Progressing() as progress:
        found = demos.image(output or Path("demo-out"), progress=progress)
    show(found, as_json, demo_table)


@app.command()
def quantize(
    task: Annotated[Path, typer.Argument(help="Task file: model(), example_inputs(), calibration(); see examples/.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write; default: the task's name.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="How the numbers are chosen: a name that `edgeq recipes` lists, or a .toml file.")
    ] = "default",
    settings: Settings = None,
    target: Annotated[
        str, typer.Option(help=f"portable: one program for all runtimes; or {', '.join(backends.RUNTIMES)}, simulated.")
    ] = "portable",
    precision: Annotated[
        str, typer.Option(help="w8a8, w8 (weights only), fp32; w4a8, w8a4, w6a6 … with --target simulated.")
    ] = "w8a8",
    plan: Annotated[
        Path | None, typer.Option(help="An edited plan.json: layer → precision; overrides recipe, target, precision.")
    ] = None,
    data: Data = None,
    keep_float: KeepFloat = None,
    as_json: AsJson = False,
) -> None:
    """Calibrate a network and write one quantized program."""
    from edgeq import api
    from edgeq.calib.workspace import beside
    from edgeq.pages.tables import quantized_table

    folder = (output or Path(task.stem)).absolute()
    try:
        with Progressing() as progress:
            model = api.quantize(
                task,
                recipe=recipe,
                settings=settings or (),
                target=target,
                precision=precision,
                plan=plan,
                data=data,
                keep_float=keep_float or (),
                output=folder,
                progress=progress,
            )
    except KeyboardInterrupt:
        if beside(folder).is_dir():
            typer.echo(f"edgeq: {beside(folder)} keeps what is finished; the same command goes on from there", err=True)
        raise
    show(api.summary(model), as_json, quantized_table)


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
    bundle: Annotated[bool, typer.Option("--bundle", hidden=True)] = False,  # as `edgeq lidar bundle` was called
    points: Annotated[Path | None, typer.Option(hidden=True)] = None,
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
    from edgeq.cli.lidar import bundled
    from edgeq.graph.package import load
    from edgeq.pages.tables import coverage_tables
    from edgeq.run.condition import conditions, holding
    from edgeq.run.each import each
    from edgeq.run.supervised import died
    from edgeq.spec import EdgeqError

    if points is not None and not bundle:
        raise typer.BadParameter("--points is the golden frame of a bundle: add --bundle")
    wanted, failing_if = named(to), conditions(fail_if or (), "export")
    with Progressing() as progress:
        model = load(folder)

        def row(name: str) -> dict[str, Any]:
            progress(f"export {name}", 0, None)
            if name in died():
                raise EdgeqError(died()[name])
            made = api.coverage(
                api.export(model, name, io=io, channels_last=channels_last, tune=tune, progress=progress), model
            )
            return {**made, **bundled(model, name, points, progress)} if bundle else made

        rows = each(wanted, "export", row)
    found = {"model": str(folder), "backends": rows, "failing": holding(failing_if, rows)}
    show(found, as_json, coverage_tables)
    end(found)


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
        with _resumable(), Progressing() as progress:
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
    show(found, as_json, parity_table)
    end(found)


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
        show(api.compare(*compare), as_json, comparison_tables)
        return
    if folder is None:
        raise typer.BadParameter("name a folder written by edgeq quantize, or two profiles to --compare")
    with _resumable(), Progressing() as progress:
        found = api.profile(
            folder,
            to=to or (),
            device=device,
            threads=threads,
            warmup=warmup,
            runs=runs,
            cores=cores_of(cores),
            trace=trace,
            fail_if=fail_if or (),
            progress=progress,
        )
    show(found, as_json, latency_tables)
    end(found)


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
    show(found, as_json, diff_tables)
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

    with Progressing() as progress:
        progress("report", 0, None)
        page = api.report(folder, output=output, task=task)
    show({"report": str(page)}, as_json, lambda found: found["report"])


@app.command()
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="Print this one's steps, in the form that --recipe FILE.toml reads.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How numbers can be chosen: what each recipe does, needs and costs."""
    from edgeq import api
    from edgeq.pages.choices import recipe_tables

    found = api.recipes(name)
    if name is not None and not as_json:
        typer.echo(found[name]["toml"], nl=False)
    else:
        show(found, as_json, recipe_tables)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Which backends and devices work here, how to get the others, and which recipes and targets there are."""
    from edgeq import api
    from edgeq.pages.choices import doctor_tables

    show(api.doctor(), as_json, doctor_tables)


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    """What Ctrl-C interrupts goes on where it was; says so."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("edgeq: every finished runtime is kept; the same command goes on from there", err=True)
        raise


def cores_of(text: str | None) -> list[int]:
    """`4,5` as numbers."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise typer.BadParameter(f"--cores {text}: write core numbers, as 4,5") from None
