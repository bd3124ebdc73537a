#!/usr/bin/env bash
# ai-edge-quantizer's calibration forgets: the order of the samples decides the scale, twelvefold.
#
# One would expect: static int8 ranges hold what calibration saw, as TensorFlow Lite's own converter has it, so that shuffling
#   the samples changes nothing and no value that was seen is clipped.
# Guessed before it ran: least and largest value over all samples.
# What happens: each sample's least and largest value go into moving averages (0.95 of the old one). Seven samples of ones and
#   one of hundreds give a range up to 70 where the hundreds come first, and up to 6 where they come last: there 100 is read
#   as 6. Of samples that are -1 and 1 by turns, all 1s are read as 0, since both averages lie below it.
# Hurts: whoever calibrates with data sorted by class or by time, or with few samples of unlike size; nothing is said.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3.11 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 litert-torch==0.10.0 ai-edge-litert==2.3.0 \
    ai-edge-quantizer==0.10.0
cat > try.py <<'PY'
import importlib.metadata
import sys

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe

torch.manual_seed(0)
litert_torch.convert(torch.nn.Linear(8, 4).eval(), (torch.zeros(1, 8),)).export("model.tflite")


def ends(values):
    """The least and largest real value of the int8 input after calibration on samples that are one of `values` each."""
    made = quantizer.Quantizer("model.tflite")
    made.load_quantization_recipe(recipe.static_wi8_ai8())
    samples = [{"args_0": np.full((1, 8), value, np.float32)} for value in values]
    content = made.quantize(made.calibrate({"serving_default": samples})).quantized_model
    interpreter = Interpreter(model_content=bytes(content))
    interpreter.allocate_tensors()
    scale, zero = next(
        detail["quantization"]
        for detail in interpreter.get_tensor_details()
        if detail["name"] == "serving_default_args_0" and detail["dtype"] is np.int8
    )
    return scale * (-128 - zero), scale * (127 - zero)


first, last, turns = ends([100] + [1] * 7), ends([1] * 7 + [100]), ends([-1, 1] * 4)
for name in ("ai-edge-quantizer", "ai-edge-litert", "litert-torch", "torch"):
    print(name, importlib.metadata.version(name))
print("FOUND the sample of 100 first: %.2f to %.2f" % first)
print("FOUND the sample of 100 last: %.2f to %.2f" % last)
print("FOUND -1 and 1 by turns: %.2f to %.2f" % turns)
sys.exit(not (first[1] > 10 * last[1] and last[1] < 10 and turns[1] == 0))
PY
env/bin/python try.py 2> log | grep -E "^(FOUND|[a-z-]+ [0-9.+a-z]+$)" || { tail -5 log; exit 1; }
