#!/usr/bin/env bash
# litert-torch turns `c - x` into `x - c` and `c / x` into `x / c` where x comes out of a transposition, also out of a convolution.
#
# One would expect: subtraction and division keep their sides; addition and product alone may be turned round.
# Guessed before it ran: the resampling in front of the wrong `1 - x` is at fault, plain `1 - x.permute(...)` is right.
# What happens: a pass of the converter moves a transposition behind the operator that follows and puts the constant on the right.
#   Any constant, a number or a tensor; behind permute, index_select along a later axis, or a convolution, whose output the
#   converter transposes from channels-last. pow, remainder, atan2 and comparisons keep their sides; without a transposition
#   all do. Nothing is warned of.
# Hurts: `1 - mask`, `1 / (1 + exp(-x))`, gates as `1 - sigmoid(z)` behind a convolution: the file loads, runs, and is wrong in
#   every value. `c + (-x)` is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3.11 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 litert-torch==0.10.0 ai-edge-litert==2.3.0
cat > try.py <<'PY'
import importlib.metadata
import sys

import litert_torch
import torch

KERNEL = torch.ones(3, 3, 1, 1)
CASES = {
    "1 - permuted": lambda x: 1.0 - x.permute(0, 2, 3, 1),
    "row - permuted": lambda x: torch.arange(3.0) - x.permute(0, 2, 3, 1),
    "2 / permuted": lambda x: 2.0 / x.permute(0, 2, 3, 1),
    "1 - convolved": lambda x: 1.0 - torch.nn.functional.conv2d(x, KERNEL),
    "1 - x": lambda x: 1.0 - x,
    "1 + (-permuted)": lambda x: 1.0 + (-x.permute(0, 2, 3, 1)),
    "2 ** permuted": lambda x: 2.0 ** x.permute(0, 2, 3, 1),
}


class Network(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


x = torch.rand(1, 3, 4, 2, generator=torch.Generator().manual_seed(0)) + 1.5
print("litert-torch", importlib.metadata.version("litert-torch"), "torch", torch.__version__)
off = {}
for name, function in CASES.items():
    network = Network(function).eval()
    off[name] = float((torch.as_tensor(litert_torch.convert(network, (x,))(x)) - network(x)).abs().max())
    print(f"{name}: {off[name]:.4f} off")
turned = list(CASES)[:4]
sys.exit(not (all(off[n] > 0.1 for n in turned) and all(off[n] < 1e-4 for n in CASES if n not in turned)))
PY
env/bin/python try.py 2> log | grep -E "^litert-torch|off$" || { tail -5 log; exit 1; }
