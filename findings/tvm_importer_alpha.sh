#!/usr/bin/env bash
# TVM's importer of torch.export programs leaves `alpha` out of add, sub and rsub, and says nothing.
#
# One would expect: a + alpha * b, or a refusal, as for an operator that the importer does not know.
# Guessed before it ran: alpha of sub is left out, so alpha and beta of addmm, and celu's alpha, are too.
# What happens: torch.add(a, b, alpha=3), of a number too, torch.sub and torch.rsub are imported as a + b, a - b and b - a. addmm
#   and celu are right: they are decomposed before, with their factors as products, while add and sub are left as they are.
# Hurts: residual branches and moving averages written with alpha=: the module compiles, runs, and is wrong in every value.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3.11 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 apache-tvm==0.26.0 numpy
cat > try.py <<'PY'
import importlib.metadata
import sys

import numpy as np
import torch
import tvm
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

CASES = {
    "add": lambda x: torch.add(x * 2, x, alpha=3),
    "add of a number": lambda x: torch.add(x, 2, alpha=3),
    "sub": lambda x: torch.sub(x * 2, x, alpha=3),
    "rsub": lambda x: torch.rsub(x, x * 2, alpha=3),
    "a product instead": lambda x: x * 2 - 3 * x,
    "addmm": lambda x: torch.addmm(x[0, :, :5], x[0], x[0].T, beta=0.5, alpha=2),
    "celu": lambda x: torch.nn.functional.celu(x, 0.5),
}


class Network(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


x = torch.randn(1, 5, 6, generator=torch.Generator().manual_seed(2))
print("apache-tvm", importlib.metadata.version("apache-tvm"), "torch", torch.__version__)
off = {}
for name, function in CASES.items():
    network = Network(function).eval()
    module = from_exported_program(torch.export.export(network, (x,)))
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())
    got = machine["main"](tvm.runtime.tensor(x.numpy()))
    got = got[0] if not hasattr(got, "numpy") else got
    off[name] = float(np.abs(got.numpy() - network(x).numpy()).max())
    print(f"{name}: {off[name]:.4f} off")
left_out = list(CASES)[:4]
sys.exit(not (all(off[n] > 0.01 for n in left_out) and all(off[n] < 1e-4 for n in CASES if n not in left_out)))
PY
env/bin/python try.py 2> log | grep -E "^apache-tvm|off$" || { tail -5 log; exit 1; }
