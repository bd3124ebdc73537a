"""Options and arguments that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeq import backends

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
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="STEP.OPTION=VALUE",
        help="Change an option of the recipe, as round.solver=gptq; `edgeq recipes NAME` prints them; repeat for several.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="zeroq|genie|layernorm|noise|PATH",
        help="Calibrate on other inputs than calibration()'s: zeroq (and, slower, genie) distils them from the network's "
        "BatchNorms, "
        "layernorm and noise are weaker (options: --set data.seed=1, data.images=64); or PATH of .npy or .npz files, one a "
        "batch, or of one such file.",
        show_default=False,
    ),
]
KeepFloat = Annotated[
    list[str] | None,
    typer.Option(
        "--keep-float",
        help="Layers that stay in float: a layer's key, a module's path or a pattern, as 'head.*'; repeat for several.",
        show_default=False,
    ),
]


def named(to: list[str] | None) -> list[str]:
    """The backends of --to, each once.

    Raises:
        typer.BadParameter: none is named. EdgeqError: there is none of a name.
    """
    if not to:
        raise typer.BadParameter(
            f"name at least one backend: {', '.join(f'--to {name}' for name in backends.RUNTIMES)}"
        )
    for name in to:
        backends.runtime_of(name)
    return list(dict.fromkeys(to))
