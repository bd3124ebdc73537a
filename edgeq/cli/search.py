"""edgeq search and explain: which layer gets which precision, by what the device measures, and what holds its time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq import backends
from edgeq.cli.options import MEASURED, AsJson, Data, Device, KeepFloat, Settings, TaskFile, Threads, To
from edgeq.cli.terminal import Progressing, show
from edgeq.cli.verbs import app, cores_of


@app.command()
def search(
    task: Annotated[Path, typer.Argument(help="Task file: model(), example_inputs(), calibration(), evaluate().")],
    to: Annotated[
        str,
        typer.Option("--to", help=f"The runtime: {', '.join(backends.RUNTIMES)}; or simulated, for sizes alone."),
    ],
    budget_ms: Annotated[
        float | None,
        typer.Option(help="Milliseconds, as measured: find what loses least within them.", show_default=False),
    ] = None,
    budget_bytes: Annotated[
        int | None, typer.Option(help="Bytes of the artefact, alone or beside another limit.", show_default=False)
    ] = None,
    budget_instructions: Annotated[
        int | None, typer.Option(help="In the place of milliseconds on an emulated device.", show_default=False)
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="What the metric may lose, absolute, as 0.005 of a top1: find the fastest that keeps to it."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Which of evaluate()'s numbers counts; default: the first.", show_default=False)
    ] = None,
    lower_is_better: Annotated[
        bool, typer.Option("--lower-is-better", help="The metric is an error: the lower the better.")
    ] = False,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="A precision that a layer may have, as w8a8; repeat for several. Default: all that the runtime has.",
            show_default=False,
        ),
    ] = None,
    device: Device = "host",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder of the winner; all trials lie in FOLDER.search. Default: the task's name."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Plans to try beside the uniform ones.")] = 8,
    recipe: Annotated[
        str, typer.Option(help="How the numbers of each plan are chosen; see `edgeq recipes`.")
    ] = "default",
    settings: Settings = None,
    data: Data = None,
    keep_float: KeepFloat = None,
    threads: Threads = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each plan; the median counts.")] = 30,
    cores: Annotated[
        str | None, typer.Option(help="Cores of the device to run on, as 4,5.", show_default=False)
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what an earlier search has measured.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the precision of each layer: least loss within a budget that the device measures.

    Each round solves an integer program over what layers cost and hurt, exports that plan, times it on the device, and corrects
    what was believed. A search that was interrupted goes on where it was; measurements are never repeated.

    [bold]edgeq search my_task.py --to executorch --budget-ms 12[/bold]
    """
    from edgeq.pages.search import search_tables
    from edgeq.search import search as find

    try:
        with Progressing() as progress:
            found = find(
                task,
                to=to,
                device=device,
                budget_ms=budget_ms,
                budget_instructions=budget_instructions,
                max_drop=max_drop,
                budget_bytes=budget_bytes,
                metric=metric,
                lower_is_better=lower_is_better,
                precisions=precision or (),
                recipe=recipe,
                settings=settings or (),
                data=data,
                keep_float=keep_float or (),
                rounds=rounds,
                threads=threads,
                runs=runs,
                cores=cores_of(cores),
                fresh=fresh,
                output=output,
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo("edgeq: every plan that was measured is kept; the same command goes on from there", err=True)
        raise
    show(found, as_json, search_tables)


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help=MEASURED)],
    to: To = None,
    device: Device = "host",
    task: TaskFile = None,
    threads: Threads = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs.")] = 30,
    as_json: AsJson = False,
) -> None:
    """Why is it slow, or wrong: each cause with the milliseconds or the error it holds, and what would change it.

    Times each artefact and its float twin; puts the layers where the error rises most back into float, one by one.
    """
    from edgeq.pages.search import explained_tables
    from edgeq.search import explain as find

    with Progressing() as progress:
        found = find(folder, to=to or (), device=device, task=task, threads=threads, runs=runs, progress=progress)
    show(found, as_json, explained_tables)
