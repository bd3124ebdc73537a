#!/usr/bin/env bash
# torch's two "quantize per tensor" operators disagree on ties when the zero point is odd.
#
# Expected: torch.quantize_per_tensor, the quantized_decomposed operator of the same name that PT2E programs use and
# fake_quantize_per_tensor_affine are one function of scale and zero point.
# Guess before running: none was firm; where the zero point enters the rounding was the question.
# What happens: on x86 (AVX-512, AVX2 and the plain build alike) torch.quantize_per_tensor adds the zero point BEFORE it rounds half
# to even. With scale 0.5 and zero point 3 every tie lands one step away from what the other two say; with an even zero
# point all three agree.
# Hurts: who checks a converted PT2E program or a QAT model against torch.quantize_per_tensor: images in steps of 1/255, sums of
# int8 numbers and averages of two pixels are full of ties, so half of all tensors are off by one in many elements.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators

print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
x = torch.tensor([0.25, 0.75, 1.25, 1.75, -0.25, -0.75])
for zero_point in (2, 3):
    eager = torch.quantize_per_tensor(x, 0.5, zero_point, torch.qint8).int_repr().tolist()
    decomposed = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.5, zero_point, -128, 127, torch.int8).tolist()
    fake = torch.fake_quantize_per_tensor_affine(x, 0.5, zero_point, -128, 127) / 0.5 + zero_point
    print(f"zero point {zero_point}: quantize_per_tensor {eager}, decomposed {decomposed}, fake {fake.int().tolist()}")
    assert decomposed == fake.int().tolist(), "the behaviour changed"
    off = [abs(a - b) for a, b in zip(eager, decomposed)]
    assert off == [zero_point % 2] * 6, "the behaviour changed"
PYTHON
