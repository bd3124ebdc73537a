"""Skeleton: programs as torch stores them, run operator by operator in float64."""

from edgeq.backends.runtime import Runtime

RUNTIME = Runtime(name="skeleton", title="Skeleton", rank=9, module="torch", package="torch")
