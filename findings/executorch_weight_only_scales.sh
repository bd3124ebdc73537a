#!/usr/bin/env bash
# ExecuTorch's XNNPACK delegate drops the scales of a weight-only quantized Linear.
#
# Expected: torchao's IntxWeightOnlyConfig (int8 weights, float activations), exported and lowered, gives torchao's numbers; or
# the partitioner leaves the layer alone.
# Guess before running: from an earlier note of ours: wrong numbers. The guess was right, which is no comfort.
# What happens: lowering succeeds, the program loads and runs, and the output is x times the INTEGERS, plus bias: hundreds where
# the model says tenths. Checked below against that very product.
# Hurts: who wants smaller weights without calibration and takes the least intrusive recipe. Use the config with dynamic int8
# activations, whose scales are kept.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 executorch==1.5.1 torchao==0.18.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import logging

import torch

logging.disable(logging.WARNING)
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.runtime import Runtime
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis

for name in ("executorch", "torchao", "torch"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 8)).eval()
quantize_(model, IntxWeightOnlyConfig(torch.int8, PerAxis(0)))
x = torch.randn(2, 64)
with torch.no_grad():
    want = model(x)
lowered = to_edge_transform_and_lower(
    torch.export.export(model, (x,)),
    partitioner=[XnnpackPartitioner()],
    compile_config=EdgeCompileConfig(_check_ir_validity=False),
).to_executorch()
program = Runtime.get().load_program(lowered.buffer)
got = program.load_method("forward").execute([x])[0]
unscaled = x @ model[0].weight.qdata.float().T + model[0].bias
print("torchao   ", want[0, :3].tolist())
print("ExecuTorch", got[0, :3].tolist())
print("unscaled  ", unscaled[0, :3].tolist())
assert torch.allclose(got, unscaled, rtol=1e-3, atol=1e-2), "the behaviour changed"
assert (got - want).abs().max() > 100, "the behaviour changed"
PYTHON
