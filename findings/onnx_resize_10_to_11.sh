#!/usr/bin/env bash
# onnx.version_converter changes what a Resize computes when it takes a model from opset 10 to 11.
#
# Expected: the converter keeps the numbers, as it does for Softmax, whose default axis changed in opset 13.
# Guess before running: it writes coordinate_transformation_mode = asymmetric, which is what opset 10 means. Wrong.
# What happens: the attribute is left out, so the new default half_pixel holds: the same input gives values up to 0.45 apart
# (standard normal input, linear, factor 1.5). The checker passes, no warning is printed. Writing the attribute by hand
# gives the old numbers back exactly. Softmax from 11 to 18 is right to the bit.
# Hurts: who raises an old detector's or segmenter's opset because a quantizer asks for 13 or more: its upsampling moves by up
# to half a pixel, and the loss of accuracy is put down to int8.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter

print("onnx", onnx.__version__, "onnxruntime", onnxruntime.__version__)
x = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype(np.float32)


def model(node, constants, shape, opset):
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 8
    return made


def run(made):
    onnx.checker.check_model(made)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


scales = numpy_helper.from_array(np.array([1, 1, 1.5, 1.5], np.float32), "scales")
old = model(helper.make_node("Resize", ["x", "scales"], ["y"], mode="linear"), [scales], [1, 2, 6, 6], 10)
new = version_converter.convert_version(old, 11)
difference = float(np.abs(run(old) - run(new)).max())
print("attributes after conversion:", [a.name for n in new.graph.node for a in n.attribute])
print("Resize, opset 10 against 11: largest difference", difference)
resize = next(n for n in new.graph.node if n.op_type == "Resize")
resize.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
cured = float(np.abs(run(old) - run(new)).max())
print("with coordinate_transformation_mode=asymmetric:", cured)
softmax = model(helper.make_node("Softmax", ["x"], ["y"]), [], [1, 2, 4, 4], 11)
kept = float(np.abs(run(softmax) - run(version_converter.convert_version(softmax, 18))).max())
print("Softmax, opset 11 against 18:", kept)
assert cured == 0 and kept == 0
assert difference > 0.4, "the behaviour changed"
PYTHON
