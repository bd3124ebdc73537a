#!/usr/bin/env bash
# coremltools prunes a whole layer when its weights have few distinct magnitudes.
#
# Expected: OpMagnitudePrunerConfig(target_sparsity=0.3) makes 30 % of a layer's weights zero.
# Guess before running: 30 % exactly, ties broken by position. Wrong.
# What happens: the threshold is the magnitude at that quantile, and everything up to it goes. In a layer whose weights are +-0.5
# (a quarter) and +-1 (the rest), a target of 0.1 removes 25 %, and targets of 0.3 and 0.5 remove everything: the layer is zero, its
# output is its bias. No warning.
# Hurts: who prunes after quantizing or palettizing (the order that "joint compression" invites), and binary or ternary networks, whose
# weights have one or two magnitudes.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 coremltools==9.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import logging

import torch

logging.disable(logging.ERROR)
import coremltools as ct
import coremltools.optimize.coreml as cto

for name in ("coremltools", "torch"):
    print(name, importlib.metadata.version(name))
torch.manual_seed(0)
layer = torch.nn.Linear(64, 64).eval()
with torch.no_grad():
    layer.weight.copy_(torch.randn(64, 64).sign())
    layer.weight[:16] *= 0.5
exported = torch.export.export(layer, (torch.randn(1, 64),)).run_decompositions({})
model = ct.convert(exported, minimum_deployment_target=ct.target.iOS18, skip_model_load=True)
removed = {}
for target in (0.1, 0.25, 0.3, 0.5):
    pruner = cto.OpMagnitudePrunerConfig(target_sparsity=target, weight_threshold=0)
    pruned = cto.prune_weights(model, cto.OptimizationConfig(global_config=pruner))
    operators = pruned._mil_program.functions["main"].operations
    sparse = next(op for op in operators if op.op_type == "constexpr_sparse_to_dense")
    removed[target] = 1 - sparse.nonzero_data.shape[0] / layer.weight.numel()
    print(f"target sparsity {target}: {removed[target]:.0%} of the weights removed")
assert removed[0.25] == 0.25
assert removed[0.1] == 0.25 and removed[0.3] == removed[0.5] == 1, "the behaviour changed"
PYTHON
