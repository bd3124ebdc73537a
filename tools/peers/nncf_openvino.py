"""NNCF's post-training int8 (its defaults, fast bias correction included) on OpenVINO, run by OpenVINO's CPU plugin."""

from __future__ import annotations

import time
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from exchange import Run, exchange_folder, images, measure


def load(core: Any, model: Any) -> Run:
    """Compiled for one thread and one stream, computing in float32 where not in int8."""
    options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", options)
    return lambda x: np.asarray(compiled(x)[0])


def main() -> None:
    """Convert, quantize, measure."""
    folder = exchange_folder()
    calibration, evaluation = images(folder)
    start = time.perf_counter()
    model = openvino.convert_model(torch.export.load(folder / "network.pt2"))
    converted = time.perf_counter()
    data = nncf.Dataset([calibration[i : i + 1] for i in range(len(calibration))])
    quantized_model = nncf.quantize(model, data, subset_size=len(calibration))
    quantized = time.perf_counter()
    core = openvino.Core()
    packages = ("nncf", "openvino")
    times = {"quantize_s": quantized - converted, "lower_s": converted - start}
    measure(folder, "nncf", evaluation, load(core, quantized_model), load(core, model), packages, **times)


if __name__ == "__main__":
    main()
