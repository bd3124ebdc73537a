"""What the skeleton's kernels compute as integers: exact sums, one rounding half to even."""

from __future__ import annotations

from edgeq.graph.kinds import named
from edgeq.spec import LAYERS, OpSupport, Target

TARGET = Target(
    name="skeleton",
    runtimes=("skeleton",),
    arithmetic="ideal",  # a kernel set whose rounding is its own is a file in edgeq/graph/arithmetic/
    ops=(
        *(
            OpSupport(kind, pairs=LAYERS, fused=named("clip"))
            for kind in ("conv1d", "conv2d", "depthwise_conv2d", "linear")
        ),
        OpSupport("conv_transpose2d", pairs=LAYERS, fused=named("clip"), constraint="one group", limits=("one_group",)),
        *(OpSupport(kind, fused=named("clip")) for kind in named("arithmetic") if kind != "requantize"),
        *(OpSupport(kind) for kind in named("pool", "clip")),
        *(OpSupport(kind, shared_scale=True) for kind in named("move", "pick", "join")),
    ),
)
