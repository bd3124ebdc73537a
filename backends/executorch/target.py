"""What ExecuTorch's XNNPACK delegate computes as integers, as seen in lowered files of executorch 1.5.1."""

from __future__ import annotations

from edgeq.spec import LAYERS, WEIGHTS, OpSupport, Target

# (product of input and weight scales) / output scale, asserted in XNNPACK's src/microparams-init.c and operators/*.c
SUMS, ADDS, PRODUCTS = (2.0**-32, 2.0**8), (2.0**-10, 2.0**8), (2.0**-16, 2.0**8)
CLIPS = ("relu", "relu6", "clamp")  # clip bounds of the same kernel

TARGET = Target(
    name="executorch",
    runtimes=("executorch",),
    arithmetic="xnnpack",
    arm=(("xnnpack", "xnnpack_arm"),),
    ops=(
        OpSupport("conv1d", pairs=LAYERS, fused=CLIPS, ratio=SUMS),
        OpSupport("conv2d", pairs=LAYERS, fused=CLIPS, ratio=SUMS),
        OpSupport("depthwise_conv2d", pairs=LAYERS, fused=CLIPS, ratio=SUMS),
        OpSupport(
            "conv_transpose2d", pairs=LAYERS, fused=CLIPS, ratio=SUMS, constraint="one group", limits=("one_group",)
        ),
        OpSupport("linear", pairs=LAYERS + WEIGHTS, fused=CLIPS, ratio=SUMS),
        *(OpSupport(kind, fused=CLIPS, ratio=ADDS) for kind in ("add", "sub")),
        OpSupport("mul", fused=CLIPS, ratio=PRODUCTS),
        OpSupport("mean", constraint="over height and width of a 4-D tensor", limits=("xnnpack_mean",)),
        OpSupport(
            "avg_pool2d", constraint="no ceil_mode, and padding counts into the average", limits=("xnnpack_average",)
        ),
        OpSupport(
            "max_pool2d",
            shared_scale=True,
            constraint="a window of more than one element, no smaller than the stride",
            limits=("xnnpack_max_pool",),
        ),
        OpSupport("slice", shared_scale=True, constraint="step 1", limits=("xnnpack_slice",)),
        OpSupport("upsample_nearest", shared_scale=True, constraint="whole factors, 4-D", limits=("xnnpack_upsample",)),
        *(OpSupport(kind, shared_scale=True) for kind in ("cat", "gather", "pad", "permute", "reshape", *CLIPS)),
        *(OpSupport(kind, "table") for kind in ("sigmoid", "tanh", "curve")),
    ),
)
