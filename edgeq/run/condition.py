"""When a user's CI fails: comparisons with the numbers that export, verify and profile report."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.spec import EdgeqError

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
}
COUNTS = (
    "integer_ops", "table_ops", "eligible_ops", "float_ops",
    "integer_macs", "table_macs", "eligible_macs", "float_macs", "size_bytes",
)  # fmt: skip
NAMES: dict[str, tuple[str, ...]] = {
    "export": (*COUNTS, "float_size_bytes"),
    "verify": ("max_lsb", "exact_share", "qdq_lsb", "sqnr_db", *COUNTS),
    "profile": ("median_ms", "p10_ms", "p90_ms", "speedup", "instructions", "fewer", *COUNTS),
}
MISSING = {"max_lsb": math.inf, "qdq_lsb": math.inf}  # JSON's way to say infinite is null


@dataclass(frozen=True, slots=True)
class Condition:
    """`name compare limit` as the user wrote it."""

    text: str
    name: str
    compare: Callable[[float, float], bool]
    limit: float

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Whether a runtime's row meets it; never where the runtime has no such number."""
        value = _value(row, self.name)
        return value is not None and self.compare(value, self.limit)


def condition(text: str) -> Condition:
    """Parse a failure condition such as `max_lsb>1`.

    Raises:
        EdgeqError: the text is not `name operator number`.
    """
    match = re.fullmatch(r"\s*([\w@./%]+)\s*(>=|<=|==|>|<)\s*(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)\s*", text)
    if match is None:
        raise EdgeqError(f'--fail-if {text!r}: write a name, a comparison and a number, as "max_lsb>1"')
    return Condition(text, match[1], COMPARISONS[match[2]], float(match[3]))


def conditions(texts: Iterable[str], verb: str, metrics: Iterable[str] | None = ()) -> list[Condition]:
    """Parse all, and refuse names that `verb` does not report, before its work starts.

    metrics: names that the task's evaluate() returns; None where they are not known yet, and every name may be one.

    Raises:
        EdgeqError: see `condition`; or a name is unknown.
    """
    made = [condition(text) for text in texts]
    known = NAMES[verb] if metrics is None else (*NAMES[verb], *metrics)
    for each in made:
        if metrics is not None and each.name not in known:
            raise EdgeqError(
                f"--fail-if {each.text!r}: {verb} reports no {each.name!r}; choose from {', '.join(known)}"
            )
    return made


def holding(made: Sequence[Condition], rows: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Runtime → the conditions that hold for it, as they were written; runtimes for which none does are left out.

    Raises:
        EdgeqError: no runtime has the number that a condition names, so that it could never fail.
    """
    ran = {name: row for name, row in rows.items() if "error" not in row}
    for each in made:
        if ran and all(_value(row, each.name) is None for row in ran.values()):
            raise EdgeqError(f"--fail-if {each.text!r}: {', '.join(ran)} gave no {each.name} here; leave it out")
    found = {name: [each.text for each in made if each.holds(row)] for name, row in ran.items()}
    return {name: texts for name, texts in found.items() if texts}


def _value(row: Mapping[str, Any], name: str) -> float | None:
    """The number called `name` in a runtime's row; None where it has none."""
    if name.endswith("_ms"):
        total = row.get("total_ms") or {}
        return total.get(name.removesuffix("_ms"))
    if name == "sqnr_db" and name in row and row[name] is None:  # nothing differs, or everything does
        return -math.inf if row.get("max_lsb") is None else math.inf
    value = row.get(name, (row.get("metric") or {}).get(name))
    if value is None and name in row:
        return MISSING.get(name)
    return float(value) if isinstance(value, (int, float)) else None
