#!/usr/bin/env bash
# safetensors.numpy writes a transposed array's bytes in memory order under the transposed shape.
#
# Expected: an array comes back equal, or is refused as safetensors.torch refuses a non-contiguous tensor.
# Guess before running: refused, or made contiguous first. Wrong.
# What happens: no error. A (3, 2) view of a (2, 3) array is stored as (3, 2) with the (2, 3) array's bytes: shape and
# dtype come back right, the numbers in another order.
# Hurts: whoever moves weights between frameworks, where a transpose is the usual step (Keras kernels, TFLite's
# depthwise weights, a Linear stored the other way round). The file loads, the shapes fit, the network answers nonsense.
# np.ascontiguousarray before saving is the cure.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile numpy==2.4.6 safetensors==0.8.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata

import numpy as np
import safetensors.numpy

print("safetensors", importlib.metadata.version("safetensors"), "numpy", np.__version__)
weight = np.arange(6, dtype=np.float32).reshape(2, 3)
saved = weight.T
loaded = safetensors.numpy.load(safetensors.numpy.save({"w": saved}))["w"]
cured = safetensors.numpy.load(safetensors.numpy.save({"w": np.ascontiguousarray(saved)}))["w"]
print("saved ", saved.tolist())
print("loaded", loaded.tolist())
print("loaded, made contiguous first", cured.tolist())
assert np.array_equal(cured, saved)
assert loaded.shape == saved.shape and np.array_equal(loaded.ravel(), weight.ravel()), "the behaviour changed"
assert not np.array_equal(loaded, saved), "the behaviour changed"
PYTHON
