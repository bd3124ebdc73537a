#!/usr/bin/env bash
# A buffer that ExecuTorch's program changes starts at zero, whatever it held when it was exported.
#
# Expected: a module whose buffer starts at 5 and counts up answers 6, 7, 8 on the device as in torch.
# Guess before running: from an earlier note of ours: it starts at 0. Right.
# What happens: the state is kept from call to call, but its initial value is not written: 1, 2, 3. There is a pass that writes
# it, InitializedMutableBufferPass, which has to be named with the buffer's name; without it nothing warns.
# Hurts: running means of a normaliser, a hidden state that was warmed up, a counter or a filter's history: right in the
# exported program, wrong from the first call on the device.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 executorch==1.5.1
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.metadata

import torch
from executorch.exir import ExecutorchBackendConfig, to_edge
from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass
from executorch.runtime import Runtime

for name in ("executorch", "torch"):
    print(name, importlib.metadata.version(name))


class Counter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.full((1,), 5.0))

    def forward(self, x):
        self.count.add_(x)
        return self.count * 1


def answers(config):
    exported = torch.export.export(Counter(), (torch.ones(1),))
    program = Runtime.get().load_program(to_edge(exported).to_executorch(config=config).buffer)
    method = program.load_method("forward")
    return [method.execute([torch.ones(1)])[0].item() for _ in range(3)]


counter = Counter()
want = [counter(torch.ones(1)).item() for _ in range(3)]
plain = answers(ExecutorchBackendConfig())
named = answers(ExecutorchBackendConfig(passes=[InitializedMutableBufferPass(["count"])]))
print("torch", want, "ExecuTorch", plain, "with InitializedMutableBufferPass", named)
assert want == named == [6.0, 7.0, 8.0]
assert plain == [1.0, 2.0, 3.0], "the behaviour changed"
PYTHON
