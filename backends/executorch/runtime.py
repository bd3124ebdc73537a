"""ExecuTorch: programs of PyTorch's own runtime for devices."""

from edgeq.backends.runtime import Runtime

RUNTIME = Runtime(name="executorch", title="ExecuTorch", rank=1, module="executorch", package="executorch")
