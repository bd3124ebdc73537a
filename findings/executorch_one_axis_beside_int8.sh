#!/usr/bin/env bash
# ExecuTorch: a float Conv1d or ConvTranspose1d beside an int8 layer is not lowered, or exported and then refused by the runtime.
#
# One would expect: a network of which ExecuTorch's own quantizer quantizes the Linears alone runs, its convolution in float.
# Guessed before it ran: a float ConvTranspose1d is exported for XNNPACK and refused by its own runtime. That is wrong: by itself
#   it runs. It takes an int8 neighbour, and Conv1d fails as well.
# What happens: in front of the int8 Linear the export ends well, and loading says "Failed to load method forward, error: 0x:1"
#   (XNNPACK: invalid parameter of a convolution node). Behind it lowering raises "Weight and Input should both be quantized",
#   and names no layer. A Conv2d at the same place, or both layers in float, are right.
# Hurts: who keeps a speech or sensor network's first or last convolution in float, which is the usual advice against lost
#   accuracy. A Conv2d with a kernel of height 1 helps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3.11 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
env/bin/pip install --quiet --disable-pip-version-check numpy==2.4.6 executorch==1.5.1 torchao==0.18.0
cat > try.py <<'PY'
import importlib.metadata
import logging
import sys

import torch
from torch import nn

logging.disable(logging.WARNING)
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

torch.manual_seed(0)
x = torch.randn(1, 4, 8)


def outcome(network: nn.Module, *, int8: bool) -> str:
    """How far ExecuTorch is from torch on the same program, or what it says."""
    program = torch.export.export(network.eval(), (x,))
    if int8:  # the Linears alone
        config = get_symmetric_quantization_config(is_per_channel=True)
        prepared = prepare_pt2e(program.module(), XNNPACKQuantizer().set_module_type(nn.Linear, config))
        prepared(x)
        program = torch.export.export(convert_pt2e(prepared), (x,))
    wanted = program.module()(x)
    try:
        buffer = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    except RuntimeError as error:
        return f"not lowered: {error}"
    loaded = Runtime.get().load_program(buffer)
    try:
        method = loaded.load_method("forward")
    except RuntimeError as error:
        return f"exported, not loaded: {error}"
    off = float((method.execute([x])[0] - wanted).abs().max())
    return "right" if off < 1e-5 else f"{off:.4f} off"


of_two_axes = nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Conv2d(4, 4, 1), nn.Flatten(1, 2))
layers = {"Conv1d": nn.Conv1d(4, 4, 1), "ConvTranspose1d": nn.ConvTranspose1d(4, 4, 1), "Conv2d": of_two_axes}
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("executorch", "torchao", "torch")))
as_before = True
for name, layer in layers.items():
    places = {
        "by itself": (layer, False, "right"),
        "before a float Linear": (nn.Sequential(layer, nn.Linear(8, 8)), False, "right"),
        "before an int8 Linear": (nn.Sequential(layer, nn.Linear(8, 8)), True, "exported, not loaded"),
        "behind an int8 Linear": (nn.Sequential(nn.Linear(8, 8), layer), True, "not lowered"),
    }
    for place, (network, int8, known) in places.items():
        said = outcome(network, int8=int8)
        print(f"float {name} {place}: {said}")
        as_before &= said.startswith("right" if name == "Conv2d" else known)
sys.exit(not as_before)
PY
env/bin/python -W ignore try.py 2> log | grep -E "^executorch|^float" || { tail -5 log; exit 1; }
