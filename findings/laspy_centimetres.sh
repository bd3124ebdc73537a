#!/usr/bin/env bash
# A LAS file that laspy creates rounds every coordinate to a centimetre and counts intensity modulo 65536.
#
# Expected: las.x = an array of float64 keeps at least millimetres; numbers that an unsigned 16-bit field cannot hold
# are refused, as a classification above 31 is.
# Guess before running: millimetres are kept; float intensities raise. Both wrong.
# What happens: the header of laspy.create() has scales of 0.01, so 1.2345 m reads back as 1.23 and 0.0049 m as 0, before
# anything is written. Intensities of 0.1 and 0.9 (what most sensors' drivers hand over) become 0 and 0; 70000
# becomes 4464. None of it warns. laspy.create(...) needs header.scales set before the coordinates.
# Hurts: exports of LiDAR scans for training: a ground plane or a kerb that is quantized to 1 cm steps, and a network
# whose fourth input channel is all zeros.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile numpy==2.4.6 laspy==2.7.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata

import laspy
import numpy as np

print("laspy", importlib.metadata.version("laspy"), "numpy", np.__version__)
las = laspy.create()
las.x, las.y, las.z = np.array([[1.2345, 70.1234], [-2.3456, 1.0], [0.0049, 2.0]])
x, z = np.array(las.x), np.array(las.z)
print("default scales", las.header.scales, "x", x, "z", z)
las.intensity = np.array([0.1, 0.9])
fractions = np.array(las.intensity)
las.intensity = np.array([255.0, 70000.0])
large = np.array(las.intensity)
print("intensity 0.1, 0.9 ->", fractions, "and 255, 70000 ->", large)
try:
    las.classification = np.array([31, 45])
except OverflowError as error:
    print("classification 45 is refused:", error)
else:
    raise AssertionError("the behaviour changed")
assert np.allclose(x, [1.23, 70.12], atol=1e-9) and z[0] == 0, "the behaviour changed"
assert fractions.tolist() == [0, 0] and large.tolist() == [255, 4464], "the behaviour changed"
PYTHON
