#!/usr/bin/env bash
# ExecuTorch's XNNPACK delegate takes a softmax over an image's last axis along the channels, behind a convolution or a pool.
#
# One would expect: softmax(-1) of [N, C, H, W] adds to 1 along W, or the partitioner leaves it alone, as it does dim=1 and dim=2.
# Guessed before it ran: behind what the delegate keeps channels-last (convolutions, pools) its last axis is the channels; by itself,
#   or behind a view of three axes, a softmax is right. The guess was right; a ReLU between changes nothing.
# What happens: the softmax is exported, runs, and equals torch's softmax over the channels to the last digits.
# Hurts: soft-argmax along the rows of a heatmap, disparities of stereo networks, axial attention: outputs between 0 and 1 that
#   add up to something else along each row. Flattening to two or three axes around the softmax helps.
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

import torch
from torch import nn

logging.disable(logging.WARNING)
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

torch.manual_seed(0)
x = torch.randn(1, 3, 8, 6)
BEHIND = {
    "convolution": nn.Conv2d(3, 5, 1),
    "convolution, ReLU": nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU()),
    "transposed convolution": nn.ConvTranspose2d(3, 5, 2, 2),
    "average pool": nn.AvgPool2d(2),
    "max pool": nn.MaxPool2d(2),
}
RIGHT = {
    "nothing": nn.Identity(),
    "ReLU": nn.ReLU(),
    "convolution, view of three axes": nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(1, 2)),
}
print("executorch", importlib.metadata.version("executorch"), "torch", torch.__version__)
as_before = True
for name, before in (BEHIND | RIGHT).items():
    network = nn.Sequential(before, nn.Softmax(-1)).eval()
    exported = torch.export.export(network, (x,))
    buffer = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
    program = Runtime.get().load_program(buffer)
    method = program.load_method("forward")
    got = method.execute([x])[0].clone()
    with torch.no_grad():
        rows, channels = (float((got - torch.softmax(before(x), axis)).abs().max()) for axis in (-1, 1))
    print(f"behind {name}: {rows:.4f} off torch's last axis, {channels:.4f} off its channels")
    as_before &= (rows > 0.01 and channels < 1e-5) if name in BEHIND else rows < 1e-5
sys.exit(not as_before)
PY
env/bin/python -W ignore try.py 2> log | grep -E "^executorch|channels$" || { tail -5 log; exit 1; }
