"""When a user's CI fails: a comparison with one of the numbers that verify reports."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any

from edgeq.spec import EdgeqError

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
}


def condition(text: str) -> Callable[[dict[str, Any]], bool]:
    """Parse a failure condition such as `max_lsb>1` into a test of one backend's row.

    Raises:
        EdgeqError: the text is not `name operator number` with a name verify reports.
    """
    match = re.fullmatch(r"\s*([a-z_0-9]+)\s*(>=|<=|==|>|<)\s*(-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e-?[0-9]+)?)\s*", text)
    if match is None:
        raise EdgeqError(f'--fail-if {text!r}: write a name, a comparison and a number, as "max_lsb>1"')
    name, compare, limit = match[1], COMPARISONS[match[2]], float(match[3])

    def holds(row: dict[str, Any]) -> bool:
        value = row.get(name, (row.get("metric") or {}).get(name))
        if value is None and name in ("max_lsb", "qdq_lsb"):  # JSON's way to say infinite
            value = math.inf
        if not isinstance(value, (int, float)):
            known = ["max_lsb", "exact_share", "qdq_lsb", "integer_ops", "float_ops", *(row.get("metric") or {})]
            raise EdgeqError(f"--fail-if {text!r}: verify reports no {name!r}; choose from {', '.join(known)}")
        return compare(value, limit)

    return holds
