"""Tables on a terminal, all of one look."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table


def aligned(*columns: str, left: Any = (0,), centre: Any = ()) -> Table:
    """A table without vertical rules; columns are right aligned unless named in `left` or `centre`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), header_style="bold")
    for i, name in enumerate(columns):
        align = "left" if i in left else "center" if i in centre else "right"
        wraps = i in left and i > 0
        table.add_column(name, justify=align, overflow="fold", no_wrap=not wraps)  # type: ignore[arg-type] # one of rich's words
    return table
