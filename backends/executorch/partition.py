"""ExecuTorch's XNNPACK partitioner, extended by what its runtime takes and its stock rules leave out."""

from __future__ import annotations

from typing import Any


def partitioner() -> Any:
    """An XnnpackPartitioner that delegates what the runtime has kernels for, and leaves outside what they get wrong."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    ours = _wider() | _narrower()
    return XnnpackPartitioner(configs=[ours.get(config, config) for config in ALL_PARTITIONER_CONFIGS])


def _wider() -> dict[Any, Any]:
    """Stock rule → ours, which also takes int8 padding, and linear layers with int8 weights alone.

    The runtime has both kernels (static constant pad on int8; f32 × qc8w fully connected); the stock configuration
    declares the first float only and asks of the second that its activations be quantized too. Padding of an int8 tensor
    whose result stays float is left outside: the delegate pads from one type to the same.
    """
    from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
    from executorch.backends.xnnpack.partition.config.generic_node_configs import ConstantPadConfig
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant, tag_as_implicit_q_dq

    class IntegerPad(ConstantPadConfig):  # type: ignore[misc] # executorch ships no types
        def supported_precision_types(self) -> list[Any]:
            return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]

        def check_constraints(self, node: Any, ep: Any) -> bool:
            ends = all(is_quant(user) for user in node.users)
            return bool((ends or not is_dequant(node.args[0])) and super().check_constraints(node, ep))

    class WeightOnlyLinear(LinearConfig):  # type: ignore[misc] # executorch ships no types
        def get_deps(self, node: Any, ep: Any) -> tuple[bool, list[Any]]:
            activation, weight = node.args[:2]
            if not is_dequant(weight) or (is_dequant(activation) and any(map(is_quant, _behind_clips(node)))):
                return super().get_deps(node, ep)  # type: ignore[no-any-return] # untyped
            tag_as_implicit_q_dq(weight)
            return True, [weight, *weight.all_input_nodes]

    return {ConstantPadConfig: IntegerPad, LinearConfig: WeightOnlyLinear}


def _behind_clips(node: Any) -> list[Any]:
    """What reads a node, or the clip that a kernel of XNNPACK takes along."""
    users = [*node.users]
    fused = len(users) == 1 and any(word in str(users[0].target) for word in ("relu", "hardtanh", "clamp"))
    return [*users[0].users] if fused else users


def _narrower() -> dict[Any, Any]:
    """Stock rule → ours, which leaves outside what the delegate fails on or computes otherwise.

    A maximum goes to the delegate only where the axis is kept and is one of an image's, a PReLU only on images: its
    serialiser and its passes fail on others. A GELU by tanh stays outside: the delegate computes the one by erf.
    Bilinear resampling by a factor that the sizes are no ratio of stays outside too, as the delegate goes by sizes.
    """
    from executorch.backends.xnnpack.partition.config.generic_node_configs import GeluConfig, UpsampleBilinear2dConfig
    from executorch.backends.xnnpack.partition.config.node_configs import MaxDimConfig, PreluConfig

    class KeptMax(MaxDimConfig):  # type: ignore[misc] # executorch ships no types
        def check_constraints(self, node: Any, ep: Any) -> bool:
            kept = len(node.args) == 3 and node.args[2] and node.args[1] in (2, 3)
            return bool(kept and super().check_constraints(node, ep))

    class ImagePrelu(PreluConfig):  # type: ignore[misc] # executorch ships no types
        def check_constraints(self, node: Any, ep: Any) -> bool:
            return bool(node.meta["val"].dim() == 4 and super().check_constraints(node, ep))

    class ExactGelu(GeluConfig):  # type: ignore[misc] # executorch ships no types
        def check_constraints(self, node: Any, ep: Any) -> bool:
            return bool(node.kwargs.get("approximate", "none") == "none" and super().check_constraints(node, ep))

    class SizedBilinear(UpsampleBilinear2dConfig):  # type: ignore[misc] # executorch ships no types
        def check_constraints(self, node: Any, ep: Any) -> bool:
            factors = node.args[3] if len(node.args) > 3 else node.kwargs.get("scale_factors")
            sizes = zip(node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:], strict=True)
            whole = factors is None or all(n * f == m for (n, m), f in zip(sizes, factors, strict=True))
            return bool((whole or node.args[2]) and super().check_constraints(node, ep))

    return {
        MaxDimConfig: KeptMax,
        PreluConfig: ImagePrelu,
        GeluConfig: ExactGelu,
        UpsampleBilinear2dConfig: SizedBilinear,
    }
