#!/usr/bin/env bash
# OpenVINO's "pytorch_half_pixel" is not what PyTorch does when the output is one pixel wide.
#
# Expected: F.interpolate(x, size=(4, 1), mode="bilinear") gives the same in OpenVINO, which writes it with a mode named after PyTorch.
# Guess before running: equal, as it is at a factor of 1.5. Wrong.
# What happens: that mode takes coordinate 0 for an output of length 1: the FIRST column is copied. PyTorch takes the middle, the
# mean of the two middle columns of four. Off by 1.5 on a ramp of step 1; sizes of 2 and more are right to the last digit.
# Hurts: pyramid pooling and squeeze layers that resize to 1 x N (lane and text detectors do), and any model with a dynamic size
# whose smallest level is 1: right in every test at the usual size.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 openvino==2026.4.1 packaging==25.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata

import numpy as np
import openvino
import torch

for name in ("openvino", "torch"):
    print(name, importlib.metadata.version(name))


class Resize(torch.nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return torch.nn.functional.interpolate(x, size=self.size, mode="bilinear")


x = torch.arange(16.0).reshape(1, 1, 4, 4)
off = {}
for size in ((4, 1), (1, 4), (2, 2), (4, 2)):
    model = openvino.convert_model(torch.export.export(Resize(size), (x,)))
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got, want = compiled([x.numpy()])[0], Resize(size)(x).numpy()
    off[size] = float(np.abs(got - want).max())
    print(f"{size}: OpenVINO {got.ravel().tolist()}, torch {want.ravel().tolist()}")
assert off[2, 2] < 1e-5 and off[4, 2] < 1e-5
assert off[4, 1] == 1.5 and off[1, 4] == 6.0, "the behaviour changed"
PYTHON
