"""What edgeq's own TVM kernels compute as integers."""

from __future__ import annotations

from typing import Any

from edgeq.spec import LAYERS, WEIGHTS, OpSupport, Target

CLIPS = ("relu", "relu6", "clamp")  # clip bounds of the same kernel

TARGET = Target(
    name="tvm",
    runtimes=("tvm",),
    arithmetic="tvm",
    ops=(
        *(
            OpSupport(kind, pairs=LAYERS + WEIGHTS, fused=CLIPS)
            for kind in ("conv1d", "conv2d", "depthwise_conv2d", "linear")
        ),
        *(OpSupport(kind, fused=CLIPS) for kind in ("add", "sub", "mul")),
        OpSupport(
            "conv_transpose2d", pairs=LAYERS + WEIGHTS, fused=CLIPS, constraint="one group", limits=("one_group",)
        ),
        *(OpSupport(kind) for kind in ("cat", "max_pool2d", "avg_pool2d", "mean", *CLIPS)),
        OpSupport("gather", shared_scale=True),
        *(OpSupport(kind) for kind in ("reshape", "permute", "slice", "pad", "upsample_nearest", "requantize")),
        *(OpSupport(kind) for kind in ("sigmoid", "tanh", "curve")),
    ),
)

# artefacts for other machines than this one → TVM's description of them; what LLVM may use is all that their code needs
VARIANTS: dict[str, dict[str, Any]] = {
    "tvm-arm64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon"]},
    "tvm-arm64-dotprod": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mattr": ["+neon", "+dotprod"]},
    "tvm-hexagon": {
        "kind": "llvm",
        "mtriple": "hexagon-unknown-linux-musl",
        "mcpu": "hexagonv67",
        "mattr": ["+hvxv67", "+hvx-length128b"],
        # LLVM 22 renames registers when it schedules again after allocating them, and takes one that the next round of a
        # loop reads: a depthwise convolution of dilation 2 then begins its sums with weights instead of the bias
        "cl-opt": ["-disable-post-ra:bool=true"],
    },
}
