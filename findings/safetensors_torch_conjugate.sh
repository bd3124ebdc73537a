#!/usr/bin/env bash
# safetensors.torch forgets that a tensor is conjugated or negated.
#
# Expected: a tensor that is contiguous and accepted comes back equal.
# Guess before running: none was written down; it turned up in a sweep of views.
# What happens: torch keeps conj() and the imaginary part of a conjugate as a flag on the same bytes. The bytes are written, the
# flag is not: 1+2j conjugated comes back as 1+2j, and an imaginary part of -2 as the REAL number +2. torch.save keeps both.
# Hurts: filters of a Fourier layer, steering vectors of radar and sonar, rotary embeddings kept complex: anything
# computed with conj() and saved as a buffer. resolve_conj() and resolve_neg() before saving are the cure.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata
import io

import safetensors.torch
import torch

print("safetensors", importlib.metadata.version("safetensors"), "torch", torch.__version__)
z = torch.tensor([1 + 2j, 3 - 4j])
for name, tensor, wrong in (("conj", z.conj(), z), ("imag of conj", z.conj().imag, z.imag)):
    tensor = tensor if tensor.is_contiguous() else tensor[:1]
    loaded = safetensors.torch.load(safetensors.torch.save({"t": tensor}))["t"]
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    print(f"{name}: saved {tensor.tolist()}, safetensors gives {loaded.tolist()}, torch.save {torch.load(file).tolist()}")
    assert torch.equal(loaded, wrong[: len(loaded)]), "the behaviour changed"
    assert not torch.equal(loaded, tensor), "the behaviour changed"
PYTHON
