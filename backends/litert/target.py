"""What LiteRT's kernels compute as integers, as seen in the files this backend writes and in ai-edge-litert 2.3.0."""

from __future__ import annotations

from edgeq.spec import LAYERS, WEIGHTS, OpSupport, Target

CLIPS = ("relu", "relu6", "clamp")  # relu and relu6 in the kernel itself, other bounds as MAXIMUM and MINIMUM behind it
AVERAGE = "no ceil_mode, and padding counts into the average"

TARGET = Target(
    name="litert",
    runtimes=("litert",),
    arithmetic="litert_xnnpack",
    ops=(
        *(
            OpSupport(kind, pairs=LAYERS + WEIGHTS, fused=CLIPS)
            for kind in ("conv1d", "conv2d", "depthwise_conv2d", "linear")
        ),
        OpSupport(
            "conv_transpose2d",
            pairs=LAYERS + WEIGHTS,
            fused=CLIPS,
            constraint="one group, no dilation",
            limits=("litert_transposed",),
        ),
        *(OpSupport(kind, fused=CLIPS) for kind in ("add", "sub", "mul", "matmul", "mean")),
        OpSupport("avg_pool2d", shared_scale=True, constraint=AVERAGE, limits=("xnnpack_average",)),
        OpSupport("max_pool2d", shared_scale=True, constraint="4-D, no dilation", limits=("litert_max_pool",)),
        *(OpSupport(kind) for kind in CLIPS),
        *(OpSupport(kind, shared_scale=True) for kind in ("cat", "reshape", "permute", "gather")),
        OpSupport("slice", shared_scale=True, constraint="at most 5 axes", limits=("litert_slice",)),
        OpSupport("pad", shared_scale=True, constraint="no negative amounts", limits=("litert_pad",)),
        OpSupport("upsample_nearest", shared_scale=True, constraint="whole factors, 4-D", limits=("xnnpack_upsample",)),
        OpSupport("softmax", fixed_output=(1 / 256, -128)),
        OpSupport("sigmoid", fixed_output=(1 / 256, -128)),
        OpSupport("tanh", fixed_output=(1 / 128, 0)),
        OpSupport("curve", "table"),
    ),
    kernels=(("reference", "litert_reference"), ("builtin", "litert_builtin"), ("xnnpack", "litert_xnnpack")),
    arm=(("litert_builtin", "litert_builtin_arm"), ("litert_xnnpack", "litert_xnnpack_arm")),
)
