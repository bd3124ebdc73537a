"""Core ML: packages that Apple's systems compile for processor, GPU or Neural Engine."""

from edgeq.backends.runtime import Runtime

RUNTIME = Runtime(
    name="coreml",
    title="Core ML",
    rank=2,
    module="coremltools",
    package="coremltools",
    options=frozenset(("outputs",)),
    apple=True,
    stand_in="reference interpreter of the saved package (no latency; Core ML itself needs macOS)",
    half=True,
)
