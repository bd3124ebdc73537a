"""What Core ML's MIL program keeps between dequantize and quantize: eligible for int8, the device decides."""

from __future__ import annotations

from edgeq.spec import LAYERS, WEIGHTS, OpSupport, Target

_FUSED = ("relu", "relu6", "clamp")
_LAYERS = ("conv1d", "conv2d", "depthwise_conv2d", "linear")
_ARITHMETIC = ("add", "sub", "mul")
_PLAIN = ("avg_pool2d", "mean", "matmul", "softmax", "relu", "relu6", "clamp")
_MOVING = ("cat", "max_pool2d", "reshape", "permute", "slice", "pad", "upsample_nearest", "gather")

TARGET = Target(
    name="coreml",
    runtimes=("coreml",),
    arithmetic="coreml_fp16",
    ops=(
        *(OpSupport(kind, "eligible", LAYERS + WEIGHTS, _FUSED) for kind in _LAYERS),
        *(OpSupport(kind, "eligible", fused=_FUSED) for kind in _ARITHMETIC),
        OpSupport(
            "conv_transpose2d", "eligible", LAYERS + WEIGHTS, _FUSED, constraint="one group", limits=("one_group",)
        ),
        *(OpSupport(kind, "eligible") for kind in _PLAIN),
        *(OpSupport(kind, "table") for kind in ("sigmoid", "tanh", "curve")),
        # no kernel demands it; a second scale would only round once more
        *(OpSupport(kind, "eligible", shared_scale=True) for kind in _MOVING),
    ),
    floats=("fp32", "fp16"),
)
