"""What is only LiDAR's: its demonstration, and bundles that go from raw points to boxes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeq.cli.options import AsJson, Folder, To, named
from edgeq.cli.terminal import Progressing, end, show
from edgeq.spec import Progress

if TYPE_CHECKING:
    from edgeq.graph.package import QuantizedModel

app = typer.Typer(no_args_is_help=True, help="LiDAR detectors: a demonstration, and bundles from raw points to boxes.")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")] = Path("demo-lidar-out"),
    as_json: AsJson = False,
) -> None:
    """Quantize a 3D detector on lidar scenes by LiDAR-PTQ, run it everywhere and draw it from above (some minutes)."""
    from edgeq import demos
    from edgeq.pages.tables import lidar_table

    with Progressing() as progress:
        found = demos.lidar(output, progress=progress)
    show(found, as_json, lidar_table)


@app.command()
def bundle(
    folder: Folder,
    to: To = None,
    points: Annotated[
        Path | None,
        typer.Option(
            help="The golden frame: float32 rows of x, y, z, intensity, or .npy [N, 4 or more]; default: generated.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write FOLDER/bundle/BACKEND for one runtime or several: a detector with all that runs it, to copy to the robot."""
    from edgeq.graph.package import load
    from edgeq.pages.tables import bundle_table
    from edgeq.run.each import each

    wanted = named(to)
    with Progressing() as progress:
        model = load(folder)

        rows = each(wanted, "bundle", lambda name: bundled(model, name, points, progress))
    found = {"model": str(folder), "backends": rows, "failing": {}}
    show(found, as_json, bundle_table)
    end(found)


def bundled(model: QuantizedModel, to: str, points: Path | None, progress: Progress) -> dict[str, str]:
    """The part of a row that says where a bundle lies, once it is written."""
    from edgeq.lidar.bundle import bundle

    progress(f"bundle for {to}", 0, None)
    return {"bundle": str(bundle(model, to, points=points))}
