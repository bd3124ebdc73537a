"""Float parts of a network, on every runtime, against torch itself: what no kernel of ours computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import edgeq
from edgeq import backends
from edgeq.backends import Runtime

RUNTIMES = [name for name in backends.RUNTIMES if backends.runs_here(name) == "yes"]
