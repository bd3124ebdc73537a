"""Run a `.tflite` file on this host: optimised, reference or XNNPACK kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from edgeq.graph.arithmetic import litert_reference
from edgeq.graph.coded import dequantize
from edgeq.graph.coded import quantize as quantize_float
from edgeq.graph.quiet import quiet
from edgeq.spec import EdgeqError, QParams

Kernels = Literal["xnnpack", "builtin", "reference"]
# types of inputs and outputs: LiteRT's name → numpy's
LAST = b"edgeq_channels_last"  # metadata: indices of inputs whose channels stand last, and in the program second
SHIFT = 128  # from an int8 to the uint8 that stands for it at a file's edge
PORT_TYPES: dict[str, type[np.generic]] = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "FLOAT64": np.float64,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


def interpreter(path: Path, *, threads: int = 1, kernels: Kernels = "xnnpack", data: bytes | None = None) -> Any:
    """An interpreter of the file `path` (or of `data`, made from it) with its tensors allocated.

    kernels: `xnnpack` is LiteRT's default (its delegate takes what it can), `builtin` the optimised kernels without a
    delegate, `reference` the plain C++ ones.

    Raises:
        EdgeqError: no such file, no LiteRT model, or the package is missing.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise EdgeqError("the litert backend needs litert-torch: pip install 'edgeq[litert]'") from error
    types = {
        "xnnpack": OpResolverType.AUTO,
        "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        "reference": OpResolverType.BUILTIN_REF,
    }
    if kernels not in types:
        raise EdgeqError(f"unknown LiteRT kernels {kernels!r}: use {', '.join(types)}")
    data = _verified(path) if data is None else data
    with quiet():
        try:
            made = Interpreter(model_content=data, num_threads=threads, experimental_op_resolver_type=types[kernels])
            made.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise EdgeqError(
                f"{path}: LiteRT cannot load it ({reason}); export it again, or use another runtime if it lacks an operator"
            ) from error
    return made


def load(
    path: Path, *, threads: int = 1, kernels: Kernels = "xnnpack", raw: bool = False
) -> Callable[[Sequence[Tensor]], tuple[Tensor, ...]]:
    """`path` as a function from the program's flat inputs to its flat outputs.

    Float inputs are quantized where the file takes int8 or uint8, as the same kernel set's QUANTIZE would; such outputs
    come back dequantized, or as they are with `raw`.

    Raises:
        EdgeqError: see `interpreter`; the function raises it for inputs of another number or shape.
    """
    engine = interpreter(path, threads=threads, kernels=kernels)
    inputs, outputs = _inputs(path, engine), engine.get_output_details()

    def predict(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for detail, tensor in zip(inputs, encode(path, inputs, tensors, kernels), strict=True):
            engine.set_tensor(detail["index"], tensor.numpy())
        engine.invoke()
        results = [torch.from_numpy(np.asarray(engine.get_tensor(detail["index"]))) for detail in outputs]
        return tuple(results) if raw else decode(outputs, results)

    return predict


def feed(path: Path, engine: Any, tensors: Sequence[Tensor], kernels: Kernels = "xnnpack") -> None:
    """Set the inputs of `engine`, floats quantized where it takes integers.

    Raises:
        EdgeqError: another number of inputs, or another shape.
    """
    inputs = _inputs(path, engine)
    for detail, tensor in zip(inputs, encode(path, inputs, tensors, kernels), strict=True):
        engine.set_tensor(detail["index"], tensor.numpy())


def _inputs(path: Path, engine: Any) -> list[dict[str, Any]]:
    """The interpreter's inputs, with the layout that `path` says."""
    return [d | {"last": p["last"]} for d, p in zip(engine.get_input_details(), ports(path)[0], strict=True)]


def encode(
    path: Path, details: Sequence[dict[str, Any]], tensors: Sequence[Tensor], kernels: Kernels = "xnnpack"
) -> tuple[Tensor, ...]:
    """`tensors` as the inputs in `details` (see `ports`), floats quantized where they are integers, channels put last.

    Raises:
        EdgeqError: another number of inputs, or another shape.
    """
    quantize = quantize_float if kernels == "xnnpack" else litert_reference.quantize
    if len(tensors) != len(details):
        raise EdgeqError(f"{path} takes {len(details)} inputs, got {len(tensors)}")
    made = []
    for detail, tensor in zip(details, tensors, strict=True):
        wanted = tuple(int(d) for d in detail["shape"])
        if detail["last"]:
            wanted = (wanted[0], wanted[3], *wanted[1:3])
        if tuple(tensor.shape) != wanted:
            raise EdgeqError(f"{path}: input {detail['name']} is {wanted}, got {tuple(tensor.shape)}")
        if detail["last"]:
            tensor = tensor.permute(0, 2, 3, 1)
        if _quantized(detail) and tensor.is_floating_point():
            tensor = quantize(tensor, _numbers(detail))
            if detail["dtype"] is np.uint8:
                tensor = tensor.to(torch.int16) + SHIFT
        made.append(torch.from_numpy(tensor.detach().contiguous().numpy().astype(detail["dtype"], copy=False)))
    return tuple(made)


def decode(details: Sequence[dict[str, Any]], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs as the program's: quantized ones dequantized."""
    shifts = [SHIFT if d["dtype"] is np.uint8 else 0 for d in details]
    return tuple(
        dequantize((x.to(torch.int16) - shift).to(torch.int8), _numbers(d)) if _quantized(d) else x
        for d, x, shift in zip(details, tensors, shifts, strict=True)
    )


def ports(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs of a file in its own order, described as the interpreter does, without one.

    `last`: whether an input's channels stand last, and in the program behind the batch.

    Raises:
        EdgeqError: no LiteRT model, a damaged one, or a tensor type that edgeq never writes there.
    """
    data = _verified(path)
    from edgeq.backends.litert.flatbuffer import schema

    model = schema().ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    last = [i for entry in model.metadata or () if entry.name == LAST for i in model.buffers[entry.buffer].data]
    try:
        given, made = ([described(graph.tensors[int(i)]) for i in ends] for ends in (graph.inputs, graph.outputs))
    except EdgeqError as error:
        raise EdgeqError(f"{path}: {error}") from error
    return [detail | {"last": place in last} for place, detail in enumerate(given)], made


def described(tensor: Any) -> dict[str, Any]:
    """A schema object TensorT as the interpreter describes it: name, shape, numpy's type, scale and zero point.

    Raises:
        EdgeqError: a type that edgeq never writes at a file's edge.
    """
    from edgeq.backends.litert.flatbuffer import schema

    types = {getattr(schema().TensorType, name): numpy for name, numpy in PORT_TYPES.items()}
    name, grid = tensor.name.decode(), tensor.quantization
    if tensor.type not in types:
        raise EdgeqError(f"{name} has LiteRT's type {tensor.type}; export the program again")
    scaled = grid is not None and grid.scale is not None and len(grid.scale) == 1
    numbers = (float(grid.scale[0]), int(grid.zeroPoint[0])) if scaled else (0.0, 0)
    shape = [] if tensor.shape is None else [int(d) for d in tensor.shape]
    return {"name": name, "shape": shape, "dtype": types[tensor.type], "quantization": numbers}


def _quantized(detail: dict[str, Any]) -> bool:
    """Whether an input or output holds quantized numbers; a network's own bytes have no scale."""
    return detail["dtype"] in (np.int8, np.uint8) and detail["quantization"][0] != 0.0


def _numbers(detail: dict[str, Any]) -> QParams:
    """Scale and zero point of an input's or output's int8: those of a uint8 stand for the same numbers plus 128."""
    scale, zero_point = detail["quantization"]
    return QParams((float(scale),), (int(zero_point) - (SHIFT if detail["dtype"] is np.uint8 else 0),))


def _verified(path: Path) -> bytes:
    """The file's bytes, once they parse as a LiteRT model whose buffers all lie inside the file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EdgeqError(f"{path}: cannot be read ({error.strerror}); export it again") from error
    if data[4:8] != b"TFL3":
        raise EdgeqError(f"{path}: is no LiteRT model; name a .tflite file")
    from edgeq.backends.litert.flatbuffer import schema

    try:
        model = schema().Model.GetRootAs(data, 0)
        for i in range(model.BuffersLength()):
            buffer = model.Buffers(i)
            if buffer.DataLength():
                buffer.Data(buffer.DataLength() - 1)
        for i in range(model.SubgraphsLength()):
            graph = model.Subgraphs(i)
            for j in range(graph.TensorsLength()):
                graph.Tensors(j).Name()
            for j in range(graph.OperatorsLength()):
                graph.Operators(j).InputsAsNumpy()
    except Exception as error:  # the reader raises whatever unpacking past the end raises
        raise EdgeqError(f"{path}: is cut short or damaged; export it again") from error
    return data
