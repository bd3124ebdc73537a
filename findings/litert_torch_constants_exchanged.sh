#!/usr/bin/env bash
# litert-torch gives a constant that is no contiguous tensor the values of another one of its shape.
#
# One would expect: constants of a module keep their values, whatever their strides, as they do in torch.export.
# Guessed before it ran: each output right, the file the same every time.
# What happens: it remembers constants by shape, strides and the address of their data. Of one that is not contiguous it makes a
#   copy, remembers the copy's address and lets the copy go; where the next constant's copy lands on the same address, the first
#   one's values are written for it. How many are wrong changes from run to run, and so do the file's bytes.
# Hurts: whoever keeps a column of a table as a plain tensor (interpolation weights, anchors, positions): the file loads, runs,
#   and is wrong in a few outputs, in some runs. As a buffer, or after .contiguous(), every constant is right.
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


class Scaled(torch.nn.Module):
    """Multiplies by columns of tables, each of seven rows."""

    def __init__(self, contiguous):
        super().__init__()
        tables = [torch.tensor([[10.0 * n + row, -1.0] for row in range(7)]) for n in range(40)]
        self.columns = [table[:, :1].contiguous() if contiguous else table[:, :1] for table in tables]

    def forward(self, x):
        return tuple(x * column for column in self.columns)


def wrong(contiguous):
    network, x = Scaled(contiguous).eval(), torch.ones(7, 1)
    got = litert_torch.convert(network, (x,))(x)
    return sum(bool((torch.as_tensor(a) != b).any()) for a, b in zip(got, network(x), strict=True))


strided, packed = wrong(False), wrong(True)
print("litert-torch", importlib.metadata.version("litert-torch"), "torch", torch.__version__)
print(f"wrong outputs of 40: {strided} with columns of tables as constants, {packed} with contiguous copies of them")
sys.exit(not (strided > 0 and packed == 0))
PY
env/bin/python try.py 2> log | tail -2 || { tail -5 log; exit 1; }
