"""What ExecuTorch's XNNPACK delegate computes as integers, as seen in lowered files of executorch 1.5.1."""

from __future__ import annotations

from edgeq.spec import OpSupport, Target

CLIPS = ("relu", "relu6", "clamp")  # clip bounds of the same kernel

RATIO = "input scale × weight scale / output scale lies in [2^-32, 256)"
ADD_RATIO = "each input scale / output scale lies in [2^-10, 2^8)"

TARGET = Target(
    name="executorch",
    runtimes=("executorch",),
    arithmetic="xnnpack",
    ops=(
        OpSupport("conv1d", fused=CLIPS, constraint=RATIO),
        OpSupport("conv2d", fused=CLIPS, constraint=RATIO),
        OpSupport("depthwise_conv2d", fused=CLIPS, constraint=RATIO),
        OpSupport(
            "conv_transpose2d",
            fused=CLIPS,
            constraint="one group: XNNPACK takes no per-channel weights in a grouped transposed convolution",
            limits=("xnnpack_transposed",),
        ),
        OpSupport("linear", fused=CLIPS, constraint=RATIO),
        *(OpSupport(kind, fused=CLIPS, constraint=ADD_RATIO) for kind in ("add", "sub")),
        OpSupport("mul", fused=CLIPS, constraint="product of input scales / output scale lies in [2^-16, 2^8)"),
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
        OpSupport(
            "upsample_nearest", shared_scale=True, constraint="whole factors, 4-D", limits=("xnnpack_upsample",)
        ),
        *(OpSupport(kind, shared_scale=True) for kind in ("cat", "pad", "permute", "reshape", *CLIPS)),
    ),
    weight_only=("linear",),
)
