"""torchao PT2E with XNNPACKQuantizer (histogram observers, weights per channel), lowered to ExecuTorch's XNNPACK."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exchange import Run, exchange_folder, images, measure, network
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.extension.pybindings import portable_lib
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e


def lower(module: Any, example: torch.Tensor, path: Path) -> Run:
    """GraphModule → .pte; returns what runs it."""
    program = torch.export.export(module, (example,))
    edge = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], compile_config=EdgeCompileConfig(_check_ir_validity=False)
    )
    path.write_bytes(edge.to_executorch().buffer)
    method = portable_lib._load_for_executorch(str(path))
    return lambda x: np.asarray(method.forward([torch.from_numpy(x).contiguous()])[0].numpy())


def main() -> None:
    """Quantize, lower, measure."""
    folder = exchange_folder()
    calibration, evaluation = images(folder)
    example = torch.from_numpy(calibration[:1])
    portable_lib._unsafe_reset_threadpool(1)
    twin = lower(network(folder), example, folder / "torchao-float.pte")
    start = time.perf_counter()
    prepared = prepare_pt2e(
        network(folder), XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    )
    for i in range(len(calibration)):
        prepared(torch.from_numpy(calibration[i : i + 1]))
    converted = convert_pt2e(prepared)
    quantized = time.perf_counter()
    int8 = lower(converted, example, folder / "torchao-int8.pte")
    lowered = time.perf_counter()
    packages = ("torchao", "executorch", "torch")
    times = {"quantize_s": quantized - start, "lower_s": lowered - quantized}
    measure(folder, "torchao", evaluation, int8, twin, packages, **times)


if __name__ == "__main__":
    main()
