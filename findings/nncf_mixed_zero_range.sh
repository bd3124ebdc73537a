#!/usr/bin/env bash
# NNCF's MIXED preset: samples that are below and above zero by turns leave a range of nothing, and every value is read as zero.
#
# One would expect: post-training quantization of a torch model covers, or nearly covers, the values of the samples; a choice
#   between presets changes a zero point, not whether the network works.
# Guessed before it ran: least and largest value over all samples, or outer percentiles of them.
# What happens: the least values of all samples are averaged, and so are the largest. Of eight samples that are -1 and 1 by
#   turns both averages are 0: the input's range becomes some thousandths, and 1 and 1000 alike are read as that. With the
#   default preset, symmetric, the size of each sample counts, and 1 is read as 1; but seven samples of 1 and one of 100 give 13.
# Hurts: sensors and audio with an offset by sample, sets sorted into few large and many small samples. No warning is given.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3.11 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 torchao==0.18.0 nncf==3.4.0
cat > try.py <<'PY'
import importlib.metadata
import logging
import sys

import nncf
import torch

logging.disable(logging.ERROR)


def read_as(values, preset):
    """What 1 and 1000 become in a convolution by 1, calibrated on samples that are one of `values` each."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1, bias=False)).eval()
    torch.nn.init.ones_(network[0].weight)
    shape = (1, 1, 8, 8)
    samples = nncf.Dataset([torch.full(shape, float(value)) for value in values])
    exported = torch.export.export(network, (torch.zeros(shape),)).module()
    quantized = nncf.quantize(exported, samples, preset=preset, subset_size=len(values))
    return tuple(float(quantized(torch.full(shape, value)).mean()) for value in (1.0, 1000.0))


turns, rare = [-1, 1] * 4, [1] * 7 + [100]
presets = nncf.QuantizationPreset
mixed, plain, clipped = read_as(turns, presets.MIXED), read_as(turns, presets.PERFORMANCE), read_as(rare, presets.PERFORMANCE)
for name in ("nncf", "torch"):
    print("FOUND", name, importlib.metadata.version(name))
print("FOUND -1 and 1 by turns, MIXED: 1 and 1000 are read as %.3f and %.3f" % mixed)
print("FOUND -1 and 1 by turns, PERFORMANCE: %.3f and %.3f" % plain)
print("FOUND seven of 1, one of 100, PERFORMANCE: %.3f and %.3f" % clipped)
sys.exit(not (max(mixed) < 0.01 and abs(plain[0] - 1) < 0.02 and clipped[1] < 20))
PY
env/bin/python try.py > log 2>&1 || { tail -5 log; exit 1; }
grep ^FOUND log | cut -d" " -f2-
