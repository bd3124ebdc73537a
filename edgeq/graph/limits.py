"""Shape checks that a target's table refers to by name: why a kernel cannot take this very operator."""

from __future__ import annotations

from collections.abc import Callable

from torch.fx import Node

LIMITS: dict[str, Callable[[Node], str | None]] = {}
