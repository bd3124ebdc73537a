"""What there is to choose from, as the terminal shows it: backends, devices, targets, recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgeq.pages.columns import aligned
from edgeq.pages.devices import device_rows
from edgeq.pages.words import NOTHING

Found = Mapping[str, Any]


def doctor_tables(found: Found) -> list[RenderableType]:
    """Backends, devices, targets and recipes, as they are here."""
    backends = aligned("backend", "version", "runs here", left=(0, 1, 2))
    for name, row in found["backends"].items():
        here = escape(row["runs_here"]) if row["installed"] else f"not installed: [bold]{escape(row['install'])}[/bold]"
        backends.add_row(name, row["version"] or NOTHING, here)
    devices = aligned("device", "what it is and can do", left=(0, 1))
    for cells in device_rows(found["devices"]):
        devices.add_row(*map(escape, cells))
    recipes = aligned("recipe", "what it does", left=(0, 1))
    for name, summary in found["recipes"].items():
        recipes.add_row(name, escape(summary))
    return [
        backends,
        devices,
        _targets(found["targets"]),
        Text("● integer   ○ the device decides   · float", style="dim"),
        recipes,
        Text("  ".join(f"{name} {version}" for name, version in found["versions"].items()), style="dim"),
    ]


def recipe_tables(found: Found) -> list[RenderableType]:
    """What each recipe does, needs and costs."""
    table = aligned("recipe", "what it does", "needs", "costs", left=(0, 1, 2, 3))
    for name, row in found.items():
        table.add_row(name, *(escape(cell) for cell in (row["summary"], ", ".join(row["needs"]), row["cost"])))
    notes = (
        "edgeq recipes NAME prints a recipe's steps; --recipe FILE.toml reads them again, --set STEP.OPTION=VALUE changes one",
        "a result runs wherever its precision does: w8a8 on every runtime, fewer bits on target simulated",
    )
    return [table, *(Text(note, style="dim") for note in notes)]


def _targets(targets: Mapping[str, Found]) -> Table:
    """Operator kinds × targets."""
    table = aligned("operator", *targets, left=(0,), centre=range(1, 1 + len(targets)))
    kinds = list(dict.fromkeys(op["kind"] for target in targets.values() for op in target["ops"]))
    marks = {
        "integer": Text("●", style="green"),
        "table": Text("◐", style="green"),
        "eligible": Text("○", style="cyan"),
    }
    for kind in kinds:
        cells = []
        for target in targets.values():
            status = next((op["status"] for op in target["ops"] if op["kind"] == kind), None)
            cells.append(marks.get(status or "", Text("·", style="dim")))
        table.add_row(kind, *cells)
    return table
