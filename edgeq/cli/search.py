"""edgeq search and explain: which layer gets which precision, by what the device measures, and what holds its time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeq import backends
from edgeq.cli.options import MEASURED, AsJson, Data, Device, KeepFloat, Settings, TaskFile, Threads, To
from edgeq.cli.terminal import Progressing, show
from edgeq.cli.verbs import app, cores_of

RUNTIME = f"The runtime: {', '.join(backends.RUNTIMES)}; or simulated, for sizes alone."
Limit = Annotated[float | None, typer.Option(help="Milliseconds, as measured: find what loses least within them.")]
Bytes = Annotated[int | None, typer.Option(help="Bytes of the artefact, alone or beside another limit.")]
Instructions = Annotated[int | None, typer.Option(help="In the place of milliseconds on an emulated device.")]
Drop = Annotated[
    float | None,
    typer.Option(help="What the metric may lose, absolute, as 0.005 of a top1: find the fastest that keeps to it."),
]
Metric = Annotated[str | None, typer.Option(help="Which of evaluate()'s numbers counts; default: the first.")]
Lower = Annotated[bool, typer.Option("--lower-is-better", help="The metric is an error: the lower the better.")]
Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        help="A precision that a layer may have, as w8a8; repeat for several. Default: all that the runtime has.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", help="Folder of the winner; all trials lie in FOLDER.search. Default: the task's name."
    ),
]
Sensitivity = Annotated[
    str,
    typer.Option(help="How it is told what each layer hurts alone: sqnr, kl, metric, …; what is tried corrects it."),
]


@app.command()
def search(
    task: Annotated[Path, typer.Argument(help="Task file: model(), example_inputs(), calibration(), evaluate().")],
    to: Annotated[str, typer.Option("--to", help=RUNTIME)],
    budget_ms: Limit = None,
    budget_bytes: Bytes = None,
    budget_instructions: Instructions = None,
    max_drop: Drop = None,
    metric: Metric = None,
    lower_is_better: Lower = False,
    precisions: Precisions = None,
    device: Device = "host",
    output: Output = None,
    rounds: Annotated[int, typer.Option(min=1, help="Plans to try beside the uniform ones.")] = 8,
    sensitivity: Sensitivity = "sqnr",
    recipe: Annotated[str, typer.Option(help="How each plan's numbers are chosen; see `edgeq recipes`.")] = "default",
    settings: Settings = None,
    data: Data = None,
    keep_float: KeepFloat = None,
    threads: Threads = 1,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each plan; the median counts.")] = 30,
    cores: Annotated[str | None, typer.Option(help="Cores of the device to run on, as 4,5.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what an earlier search has measured.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the precision of each layer: least loss within a budget that the device measures.

    Each round solves an integer program over what layers cost and hurt, exports that plan, times it on the device, and corrects
    what was believed. A search that was interrupted goes on where it was; no measurement is repeated.

    [bold]edgeq search my_task.py --to executorch --budget-ms 12[/bold]
    """
    asked: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("task", "as_json")}
    lists = {name: asked[name] or () for name in ("precisions", "settings", "keep_float")}  # typer's default is None
    from edgeq.pages.search import search_tables
    from edgeq.search import search as find

    try:
        with Progressing() as progress:
            found = find(task, **{**asked, **lists, "cores": cores_of(cores)}, progress=progress)
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
