"""LiteRT: files of Google's runtime for Android, Linux and iOS, once TensorFlow Lite."""

from edgeq.backends.runtime import Runtime

RUNTIME = Runtime(
    name="litert",
    title="LiteRT",
    rank=0,
    module="litert_torch",
    package="litert-torch",
    runner="ai-edge-litert",
    io=("int8", "uint8", "float"),
    options=frozenset(("outputs", "preprocessing", "channels_last")),
    benchmark=True,
)
