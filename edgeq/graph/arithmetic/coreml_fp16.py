"""Core ML's rule for a float16 package: that of `coreml`, with scales and biases rounded to half precision."""

from __future__ import annotations

from functools import partial

from edgeq.graph.arithmetic import coreml

compute = partial(coreml.compute, half=True)
quantize = partial(coreml.quantize, half=True)
