"""Run a saved .mlpackage on this host: by Core ML on macOS, elsewhere by interpreting its MIL program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from edgeq.backends.coreml.operators import OPERATORS
from edgeq.backends.coreml.package import Operation, Program, Variable, coremltools, read
from edgeq.backends.coreml.parameters import DTYPES
from edgeq.spec import EdgeqError

Compute = Literal["fp32", "fp16"]
# summed in double and rounded once, so that the order of a sum, which threads change, cannot show; grouped
# convolutions sum few taps in one fixed order, and torch has no fast double kernel for them
SUMS = frozenset({"conv", "conv_transpose", "linear", "matmul", "reduce_mean", "avg_pool"})
Runner = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]


def load(path: Path, *, compute: Compute = "fp32", threads: int = 1) -> Runner:
    """A function from the program's inputs to its outputs, both in the program's order.

    compute: `fp32` keeps every float in single precision, whatever the package declares (Core ML may always compute
        wider than declared); `fp16` rounds every float to half after each operator, as the Neural Engine stores it.
        Sums inside one operator are never rounded to half. On macOS the real runtime runs, and `fp16` lets it choose the unit
        while `fp32` keeps it on the CPU.
    threads: for the interpreter; set by the caller of torch, because torch has one number for the process.

    Raises:
        EdgeqError: the package is damaged, or has an operator that the interpreter does not know.
    """
    program = read(path)
    if sys.platform == "darwin":
        return _native(path, program, compute)
    unknown = sorted({op.type for op in program.operations} - OPERATORS.keys())
    if unknown:
        raise EdgeqError(f"{path}: the reference interpreter does not know the MIL operator {', '.join(unknown)}")

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with torch.inference_mode():
                return interpret(program, inputs, compute)
        finally:
            torch.set_num_threads(before)

    return run


def interpret(program: Program, inputs: Sequence[Tensor], compute: Compute) -> tuple[Tensor, ...]:
    """Execute a MIL program operator by operator; every result is checked against its declared shape and type."""
    values: dict[str, Any] = {name: _settle(value, compute) for name, value in program.constants.items()}
    for variable, tensor in zip(program.inputs, accept(program, inputs), strict=True):
        values[variable.name] = _settle(tensor, compute)
    last = {name: at for at, op in enumerate(program.operations) for names in op.inputs.values() for name in names}
    keep = set(program.outputs)
    for at, op in enumerate(program.operations):
        parameters = _parameters(op, values)
        if op.type in SUMS and int(parameters.get("groups", 1)) == 1:
            parameters = {name: _double(value) for name, value in parameters.items()}
        results = OPERATORS[op.type](parameters)
        for variable, result in zip(op.outputs, results if isinstance(results, tuple) else (results,), strict=False):
            values[variable.name] = _checked(op, variable, _settle(result, compute))
        for names in op.inputs.values():  # let go of what nobody reads any more
            for name in names:
                if last[name] == at and name not in keep:
                    values.pop(name, None)
    return tuple(values[name] for name in program.outputs)


def accept(program: Program, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs in the types that the package declares (int64 tokens become int32), their shapes checked.

    Raises:
        EdgeqError: a number or shape of inputs that the package does not take.
    """
    if len(inputs) != len(program.inputs):
        raise EdgeqError(f"the package takes {len(program.inputs)} inputs, not {len(inputs)}")
    taken = []
    for variable, tensor in zip(program.inputs, inputs, strict=True):
        if tensor.dim() == 0 and variable.shape == (1,):  # a package takes no number without axes
            tensor = tensor.reshape(1)
        if tuple(tensor.shape) != variable.shape:
            raise EdgeqError(f"input {variable.name} has shape {tuple(tensor.shape)}, not {variable.shape}")
        taken.append(tensor.detach().to(DTYPES[variable.dtype]))
    return taken


def _parameters(op: Operation, values: dict[str, Any]) -> dict[str, Any]:
    return {
        parameter: tuple(values[n] for n in names) if parameter == "values" or len(names) > 1 else values[names[0]]
        for parameter, names in op.inputs.items()
    }


def _settle(value: Any, compute: Compute) -> Any:
    """Floats as float32, rounded to half first where the program runs in half precision."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.to(torch.float16).to(torch.float32) if compute == "fp16" else value.to(torch.float32)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _checked(op: Operation, variable: Variable, value: Tensor) -> Tensor:
    if tuple(value.shape) != variable.shape or value.dtype != DTYPES[variable.dtype]:
        raise EdgeqError(
            f"{op.type} {variable.name} came out as {value.dtype} {tuple(value.shape)}, but the package declares "
            f"{variable.dtype} {variable.shape}: the interpreter reads this operator differently from its converter"
        )
    return value


def _native(path: Path, program: Program, compute: Compute) -> Runner:
    """Core ML itself."""
    ct = coremltools()
    units = ct.ComputeUnit.CPU_ONLY if compute == "fp32" else ct.ComputeUnit.ALL
    model = ct.models.MLModel(str(path), compute_units=units)

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        named = {v.name: t.numpy() for v, t in zip(program.inputs, accept(program, inputs), strict=True)}
        out = model.predict(named)
        return tuple(torch.from_numpy(np.asarray(out[name])) for name in program.outputs)

    return run
