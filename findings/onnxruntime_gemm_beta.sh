#!/usr/bin/env bash
# ONNX Runtime's quantizer divides Gemm's bias by beta instead of multiplying, and in one format multiplies it by alpha.
#
# Expected: a Gemm with alpha and beta (y = alpha A B + beta C) keeps its meaning when it is quantized, or stays in float.
# Guess before running: none was written down; it turned up in a sweep of alpha and beta.
# What happens: the file runs and answers alpha A B + C / beta in both formats: with beta 0.5 the bias counts double where it should
# count half. In the QOperator format the bias is multiplied by alpha as well. With alpha = beta = 1 all is right.
# Checked below against just those two formulas.
# Hurts: classifiers exported from scikit-learn and older frameworks, and LoRA or ensemble weights written as alpha and beta. The
# usual PyTorch Linear has both at 1, which is why it goes unseen.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import logging

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

logging.disable(logging.WARNING)
for name in ("onnx", "onnxruntime", "numpy"):
    print(name, importlib.metadata.version(name))
rng = np.random.default_rng(0)
weight = rng.normal(size=(8, 4)).astype(np.float32)
bias = rng.normal(size=4).astype(np.float32) + 3
batches = [(3 if k else 1) * rng.normal(size=(2, 8)).astype(np.float32) for k in range(8)]  # wide ranges: no saturation


class Batches(CalibrationDataReader):
    def __init__(self):
        self.left = iter(batches)

    def get_next(self):
        return next(({"x": b} for b in self.left), None)


def run(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": batches[0]})[0]


def error(alpha, beta, quant_format):
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=alpha, beta=beta)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, "float.onnx")
    right = alpha * (batches[0] @ weight) + beta * bias
    assert np.allclose(run("float.onnx"), right, atol=1e-5)
    quantize_static("float.onnx", "int8.onnx", Batches(), quant_format=quant_format)
    product, got = alpha * (batches[0] @ weight), run("int8.onnx")
    kept = alpha if quant_format is QuantFormat.QOperator else 1
    return float(np.abs(got - right).max()), float(np.abs(got - (product + kept * bias / beta)).max())


for quant_format in (QuantFormat.QDQ, QuantFormat.QOperator):
    for alpha, beta in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (1.0, 0.25)):
        from_right, from_wrong = error(alpha, beta, quant_format)
        print(
            f"{quant_format.name} alpha {alpha} beta {beta}: off by {from_right:.3f}, from the wrong formula by {from_wrong:.3f}"
        )
        assert from_wrong < 0.3, "the behaviour changed"
        wrong = beta != 1 or (alpha != 1 and quant_format is QuantFormat.QOperator)
        assert (from_right > 1) == wrong, "the behaviour changed"
PYTHON
