#!/usr/bin/env bash
# ExecuTorch's XNNPACK delegate computes the reshape behind a quantized permute in float, where torch's reshape would copy.
#
# One would expect: a channel shuffle (reshape, permute, reshape) between quantize and dequantize with equal numbers stays in int8, as
#   each of the three does by itself: nothing in it computes.
# Guessed before it ran: the last reshape leaves the integers because torch splits it into a copy and a view, as what is permuted does
#   not lie in a row; a permute whose result can be viewed keeps it, and permute_copy instead of permute does too. The guess was right.
# What happens: three conversions more than needed, a dequantize, the reshape in float, a quantize.
# Hurts: ShuffleNet's blocks, windows of shifted-window transformers, pixel shuffle in int8: the bytes are right, the time is float's.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3.11 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
env/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 executorch==1.5.1
cat > try.py <<'PY'
import importlib.metadata
import logging
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

logging.disable(logging.WARNING)
import torch.ao.quantization.fx._decomposed
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.devtools import Inspector
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.extension.pybindings import portable_lib

qd = torch.ops.quantized_decomposed
NUMBERS = (0.05, 3, -128, 127, torch.int8)


class Chain(nn.Module):
    """Each move between quantize and dequantize, all with the same numbers."""

    def __init__(self, *moves):
        super().__init__()
        self.moves = moves

    def forward(self, x):
        for move in (lambda x: x, *self.moves):
            integers = qd.quantize_per_tensor.default(move(x), *NUMBERS)
            x = qd.dequantize_per_tensor.default(integers, *NUMBERS)
        return x


def apart(x):
    return x.reshape(1, 4, 2, 6, 6)


def turned(x):
    return x.permute(0, 2, 1, 3, 4)


def copied(x):
    return torch.permute_copy(x, (0, 2, 1, 3, 4))


def joined(x):
    return x.reshape(1, 8, 6, 6)


CHAINS = {  # what conversions there should be: into int8 and out of it
    "reshape": (2, Chain(apart)),
    "reshape, permute": (2, Chain(apart, turned)),
    "permute, reshape that is a view": (2, Chain(lambda x: x.permute(0, 2, 3, 1), lambda x: x.reshape(1, 36, 8))),
    "reshape, permute, reshape": (4, Chain(apart, turned, joined)),
    "reshape, permute_copy, reshape": (2, Chain(apart, copied, joined)),
}
print("executorch", importlib.metadata.version("executorch"), "torch", torch.__version__)
x, as_before = torch.randn(1, 8, 6, 6), True
for name, (wanted, network) in CHAINS.items():
    exported = torch.export.export(network.eval(), (x,))
    lowered = to_edge_transform_and_lower(
        exported, partitioner=[XnnpackPartitioner()], compile_config=EdgeCompileConfig(_check_ir_validity=False)
    ).to_executorch()
    with tempfile.TemporaryDirectory() as folder:
        path, trace = Path(folder) / "model.pte", Path(folder) / "trace.etdp"
        path.write_bytes(lowered.buffer)
        module = portable_lib._load_for_executorch(str(path), enable_etdump=True)
        (got,) = module.forward([x])
        module.write_etdump_result_to_file(str(trace))
        blocks = Inspector(etdump_path=str(trace)).event_blocks
        operators = [event.name for block in blocks for event in block.events if event.is_delegated_op]
    converts = sum(operator.startswith("Convert") for operator in operators)
    print(f"{name}: {converts} conversions in {len(operators)} operators")
    as_before &= converts == wanted and torch.equal(got, network(x))
sys.exit(not as_before)
PY
env/bin/python -W ignore try.py 2> log | grep -E "^executorch|operators$" || { tail -5 log; exit 1; }
