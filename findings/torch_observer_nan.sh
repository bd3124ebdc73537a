#!/usr/bin/env bash
# One NaN during calibration makes a NaN scale without a word; one infinity is dropped by one observer, kept by another.
#
# Expected: an observer refuses NaN and infinity, or skips them, the same way in every observer of one library.
# Guess before running: MinMaxObserver raises on NaN. Wrong.
# What happens: after one good batch and one batch with a single NaN, MinMaxObserver and MovingAverageMinMaxObserver return scale NaN
# with zero point 0, and another good batch does not bring them back. After a single inf the first returns scale inf, the second
# NaN. HistogramObserver raises on NaN but skips the inf.
# Hurts: calibration on real recordings (NaN returns of a LiDAR, a 0/0 in a normalised image): the error shows first as an output
# that is constant or NaN in the converted network, long after the data that caused it are gone.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.ao.quantization import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver

print("torch", torch.__version__)
torch.manual_seed(0)
good = torch.randn(100)
seen = {}
for observer in (MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver):
    for bad in ("nan", "inf"):
        try:
            run = observer()
            run(good)
            run(torch.tensor([0.5, float(bad)]))
            run(good)
            scale, zero_point = run.calculate_qparams()
            seen[observer.__name__, bad] = scale.item()
            print(f"{observer.__name__} after {bad}: scale {scale.item():.4g}, zero point {zero_point.item()}")
        except RuntimeError as error:
            seen[observer.__name__, bad] = "refused"
            print(f"{observer.__name__} after {bad}: {error}")
minimum, moving = ([str(seen[name, bad]) for bad in ("nan", "inf")] for name in ("MinMaxObserver", "MovingAverageMinMaxObserver"))
assert minimum == ["nan", "inf"] and moving == ["nan", "nan"], "the behaviour changed"
assert seen["HistogramObserver", "nan"] == "refused" and seen["HistogramObserver", "inf"] < 1, "the behaviour changed"
PYTHON
