"""Each runtime by itself: what one refuses stands in its row, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from edgeq import fault
from edgeq.devices import DeviceLost
from edgeq.spec import EdgeqError

Row = dict[str, Any]


def each(names: Sequence[str], verb: str, do: Callable[[str], Row]) -> dict[str, Row]:
    """The row that `do` makes for each runtime; where it fails, `{"error": sentence}`, with `"fault": true` where the
    exception is no EdgeqError.

    Raises:
        DeviceLost, or the machine has no room left: no other runtime would fare better. The runtime's own exception
            where only one was asked for.
    """
    rows: dict[str, Row] = {}
    for name in names:
        try:
            rows[name] = do(name)
        except Exception as error:  # whatever a converter or a runtime raises
            if len(names) == 1 or isinstance(error, DeviceLost) or fault.beyond_the_machine(error):
                raise
            if isinstance(error, EdgeqError):
                rows[name] = {"error": str(error)}
            else:
                rows[name] = {"error": fault.sentence(error, f"{verb} {name}"), "fault": True}
    return rows


def succeeded(rows: dict[str, Row]) -> dict[str, Row]:
    """The rows of runtimes that did not fail."""
    return {name: row for name, row in rows.items() if "error" not in row}
