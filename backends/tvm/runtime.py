"""TVM: libraries of machine code, for this host or for boards and DSPs."""

from edgeq.backends.runtime import Runtime, Served, Variant

RUNTIME = Runtime(
    name="tvm",
    title="TVM",
    rank=3,
    module="tvm",
    package="apache-tvm",
    variants=(
        ("tvm-arm64", Variant("tvm", "aarch64", (), "emulated:cortex-a53, adb or ssh:user@host")),
        ("tvm-arm64-dotprod", Variant("tvm", "aarch64", ("asimddp",), "emulated:cortex-a76, adb or ssh:user@host")),
        ("tvm-hexagon", Variant("tvm", "hexagon", (), "emulated:hexagon-v67")),
    ),
    compiled=True,
    tunes=True,
    server=Served("tvm-rpc", "HOST:PORT[:KEY]", "python -m tvm.exec.rpc_server --port 9090 on the board"),
)
