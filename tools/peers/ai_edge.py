"""litert-torch's float conversion quantized by ai-edge-quantizer (static int8 recipe), run by LiteRT."""

from __future__ import annotations

import time
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe
from exchange import Run, exchange_folder, images, measure, network


class Wrapped(torch.nn.Module):
    """An exported GraphModule refuses .eval(), which the converter calls."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.run = [module]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One image to logits."""
        result: torch.Tensor = self.run[0](x)
        return result


def load(path: Path) -> Run:
    """A .tflite file with LiteRT's default kernels on one thread; float in and out."""
    engine = Interpreter(model_path=str(path), num_threads=1)
    engine.allocate_tensors()
    source, sink = engine.get_input_details()[0], engine.get_output_details()[0]

    def run(x: np.ndarray) -> np.ndarray:
        if source["dtype"] == np.int8:
            scale, zero = source["quantization"]
            x = np.clip(np.round(x / scale) + zero, -128, 127).astype(np.int8)
        engine.set_tensor(source["index"], x)
        engine.invoke()
        return np.asarray(engine.get_tensor(sink["index"]))

    return run


def main() -> None:
    """Convert, quantize, measure."""
    folder = exchange_folder()
    calibration, evaluation = images(folder)
    float_path, int8_path = folder / "ai-edge-float.tflite", folder / "ai-edge-int8.tflite"
    start = time.perf_counter()
    litert_torch.convert(Wrapped(network(folder)).eval(), (torch.from_numpy(calibration[:1]),)).export(str(float_path))
    converted = time.perf_counter()
    engine = Interpreter(model_path=str(float_path))
    signature, wanted = next(iter(engine.get_signature_list().items()))
    work = quantizer.Quantizer(str(float_path), recipe.static_wi8_ai8())
    feed = [{wanted["inputs"][0]: calibration[i : i + 1]} for i in range(len(calibration))]
    seen = work.calibrate({signature: feed}, num_threads=1)
    work.quantize(seen).export_model(str(int8_path), overwrite=True)
    quantized = time.perf_counter()
    packages = ("ai-edge-quantizer", "litert-torch", "ai-edge-litert")
    times = {"quantize_s": quantized - converted, "lower_s": converted - start}
    measure(folder, "ai-edge", evaluation, load(int8_path), load(float_path), packages, **times)


if __name__ == "__main__":
    main()
