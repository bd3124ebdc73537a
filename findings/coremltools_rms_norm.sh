#!/usr/bin/env bash
# coremltools turns RMSNorm's epsilon from an absolute into a relative one.
#
# Expected: torch.nn.RMSNorm converted from torch.export computes x / sqrt(mean(x^2) + eps) in float32 as in torch.
# Guess before running: none was written down for this operator; it turned up while looking at small epsilons.
# What happens: against overflow in float16 the row is first divided by its largest magnitude, and eps is added AFTER that, unscaled, in
# float32 too. Rows of size 1 agree; a row of size 0.001 comes out 3.3 times too large (eps 1e-5), and a row of zeros, where
# torch gives zeros, divides 0 by 0. Core ML's runtime needs a Mac, so the converted program's operators are
# carried out here in NumPy, one for one.
# Hurts: language models and ViTs with RMSNorm: padded tokens, a freshly filled cache or a masked image patch are rows of zeros, and
# the NaN they give spreads through attention.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 coremltools==9.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import logging

import numpy as np
import torch

logging.disable(logging.ERROR)
import coremltools as ct

for name in ("coremltools", "torch", "numpy"):
    print(name, importlib.metadata.version(name))
norm = torch.nn.RMSNorm(4, eps=1e-5).eval()
exported = torch.export.export(norm, (torch.randn(1, 4),)).run_decompositions({})
program = ct.convert(
    exported,
    minimum_deployment_target=ct.target.iOS17,
    compute_precision=ct.precision.FLOAT32,
    skip_model_load=True,
)._mil_program
operators = [op for op in program.functions["main"].operations if op.op_type != "const"]
print("operators:", " -> ".join(op.op_type for op in operators))


def by_hand(x):
    values = {next(iter(program.functions["main"].inputs)): x.astype(np.float32)}

    def value(variable):
        return values[variable.name] if variable.name in values else np.asarray(variable.val)

    for op in operators:
        a = value(op.x)
        if op.op_type in ("reduce_max", "reduce_mean"):
            reduce = np.max if op.op_type == "reduce_max" else np.mean
            result = reduce(a, axis=tuple(value(op.axes).tolist()), keepdims=bool(value(op.keep_dims)))
        elif op.op_type in ("abs", "square", "sqrt"):
            result = getattr(np, op.op_type)(a)
        else:
            result = {"add": np.add, "mul": np.multiply, "real_div": np.divide}[op.op_type](a, value(op.y))
        values[op.outputs[0].name] = result
    return result


np.seterr(invalid="ignore")
row = np.array([[1.0, -1.0, 1.0, -1.0]], np.float32)
worst = {}
for size in (1.0, 1e-3, 0.0):
    want, got = norm(torch.from_numpy(row * size)).detach().numpy(), by_hand(row * size)
    worst[size] = float(got[0, 0] / want[0, 0]) if size else float(got[0, 0])
    print(f"row of size {size}: torch {want[0]}, Core ML's program {got[0]}")
assert abs(worst[1.0] - 1) < 1e-4
assert worst[1e-3] > 3 and np.isnan(worst[0.0]), "the behaviour changed"
PYTHON
