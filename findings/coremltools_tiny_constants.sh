#!/usr/bin/env bash
# coremltools' default float16 raises every constant that is too small to 6e-8 instead of flushing it to zero.
#
# Expected: in float16, 1e-12 is 0, as in NumPy and torch; or the operator that holds it stays in float32.
# Guess before running: too small ones are raised to the smallest float16, too large ones cut to the largest. Half right: too large
# ones (1e6, -1e9) keep their operator in float32.
# What happens: an epsilon of 1e-12 becomes 6e-8, the smallest float16. That saves LayerNorm and normalize from a division by zero,
# but log(p + 1e-12), written to make log(0) a large penalty, answers -16.6 where torch answers -27.6, and a normalize
# of small vectors is limited at 6e-8. Nothing is printed.
# Hurts: log-probabilities, KL terms and losses inside a model (keyword spotting, energy in log-mel front ends), whose floor
# moves by 40 %; compute_precision=FLOAT32 keeps it.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 coremltools==9.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import logging
import math

import torch

logging.disable(logging.ERROR)
import coremltools as ct

for name in ("coremltools", "torch"):
    print(name, importlib.metadata.version(name))


class LogOfPower(torch.nn.Module):
    def __init__(self, floor):
        super().__init__()
        self.floor = floor

    def forward(self, x):
        return torch.log(x.abs() + self.floor)


def written(floor):
    exported = torch.export.export(LogOfPower(floor), (torch.randn(2, 8),)).run_decompositions({})
    model = ct.convert(exported, minimum_deployment_target=ct.target.iOS17, skip_model_load=True)
    add = next(op for op in model._mil_program.functions["main"].operations if op.op_type == "add")
    return add.y.val


small, large = written(1e-12), written(1e6)
print(f"1e-12 is written as {small.dtype} {float(small):.3g}; 1e6 as {large.dtype} {float(large):.3g}")
print(f"log(0 + floor): torch {math.log(1e-12):.2f}, converted {math.log(float(small)):.2f}")
assert large.dtype == "float32" and float(large) == 1e6
assert small.dtype == "float16" and 5e-8 < float(small) < 7e-8, "the behaviour changed"
PYTHON
