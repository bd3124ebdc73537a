#!/usr/bin/env bash
# Three float8 casts of torch treat a number that is too large in three ways, and only one hides an infinity.
#
# Expected: float8_e4m3fn has no infinity, so 10000 becomes NaN as in ml_dtypes, which defines the format for NumPy and JAX.
# Guess before running: torch and ml_dtypes agree: NaN from 465 on. Wrong.
# What happens: torch's float8_e4m3fn saturates: 10000 and even inf become 448, a finite, ordinary number. Its
# float8_e4m3fnuz gives NaN for the same input, its float8_e5m2 inf; ml_dtypes gives NaN, NaN, inf.
# The same at every vector capability of torch's CPU build (AVX-512, AVX2, none).
# Hurts: who looks for overflow with isfinite() after casting weights or activations to e4m3: an exploded layer passes.
# And who compares a float8 checkpoint made by torch with one made by JAX: equal but for the elements that matter.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 ml_dtypes==0.6.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import ml_dtypes
import torch

print("torch", torch.__version__, "ml_dtypes", ml_dtypes.__version__)
x = torch.tensor([448.0, 1e6, float("inf")])
seen = {}
for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"):
    by_torch = x.to(getattr(torch, name)).float().tolist()
    by_ml_dtypes = x.numpy().astype(getattr(ml_dtypes, name)).astype("float32").tolist()
    print(f"{name}: {x.tolist()} -> torch {by_torch}, ml_dtypes {by_ml_dtypes}")
    seen[name] = [str(v) for v in (*by_torch[1:], *by_ml_dtypes[1:])]
assert seen["float8_e4m3fn"] == ["448.0", "448.0", "nan", "nan"], "the behaviour changed"
assert seen["float8_e4m3fnuz"] == ["nan"] * 4, "the behaviour changed"
assert seen["float8_e5m2"] == ["inf"] * 4, "the behaviour changed"
PYTHON
