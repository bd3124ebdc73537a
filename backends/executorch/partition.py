"""ExecuTorch's XNNPACK partitioner, extended by what its runtime takes and its stock rules leave out."""

from __future__ import annotations

from typing import Any


def partitioner() -> Any:
    """An XnnpackPartitioner that also delegates int8 padding and linear layers with int8 weights alone.

    The runtime has both kernels (static constant pad on int8; f32 × qc8w fully connected); the stock configuration
    declares the first float only and asks of the second that its activations be quantized too.
    """
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
    from executorch.backends.xnnpack.partition.config.generic_node_configs import ConstantPadConfig
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.utils.quant_utils import is_dequant, tag_as_implicit_q_dq

    class IntegerPad(ConstantPadConfig):  # type: ignore[misc] # executorch ships no types
        def supported_precision_types(self) -> list[Any]:
            return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]

    class WeightOnlyLinear(LinearConfig):  # type: ignore[misc] # executorch ships no types
        def get_deps(self, node: Any, ep: Any) -> tuple[bool, list[Any]]:
            activation, weight = node.args[:2]
            if not is_dequant(weight) or is_dequant(activation):
                return super().get_deps(node, ep)  # type: ignore[no-any-return] # untyped
            tag_as_implicit_q_dq(weight)
            return True, [weight, *weight.all_input_nodes]

    ours = {ConstantPadConfig: IntegerPad, LinearConfig: WeightOnlyLinear}
    return XnnpackPartitioner(configs=[ours.get(config, config) for config in ALL_PARTITIONER_CONFIGS])
