"""Write a `.tflite` file: tensors, buffers and operators of one subgraph, as LiteRT's schema has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeq.backends.litert.versions import lowest, newest, since
from edgeq.spec import EdgeqError

ALIGNMENT = (
    16  # bytes, `force_align` of Buffer.data in tensorflow/lite/schema/schema.fbs; kernels load weights with vectors
)

RUNTIME = b"min_runtime_version"  # metadata, by the converter's name
RUNTIME_BYTES = 16  # of its buffer, zeros behind the text


def schema() -> Any:
    """LiteRT's flatbuffer classes.

    Raises:
        EdgeqError: the package is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise EdgeqError("the litert backend needs litert-torch: pip install 'edgeq[litert]'") from error
    return schema_py_generated


def pack(model: Any) -> bytes:
    """The bytes of a schema object ModelT, buffers aligned as the kernels want them."""
    import flatbuffers

    s = schema()
    model.buffers = [b if isinstance(b, _AlignedBuffer) else _AlignedBuffer(b.data, s) for b in model.buffers]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class ModelWriter:
    """One subgraph under construction. Tensors are known by index, as in the file."""

    def __init__(self) -> None:
        self.schema = schema()
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [self.schema.BufferT()]  # buffer 0 is the empty one, by convention
        self.operators: list[Any] = []
        self.codes: list[Any] = []
        self.others: list[Any] = []  # subgraphs behind the main one, which composite operators refer to
        self.runtimes: set[str] = set()  # releases that first had what is in the file
        self.metadata: dict[bytes, bytes] = {}  # entries beside the oldest runtime, by name
        self._shared: dict[bytes, int] = {}
        self._code_index: dict[tuple[int, bytes, int], int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str,
        scale: NDArray[np.float32] | float | None = None,
        zero_point: int = 0,
        axis: int = 0,
        data: NDArray[Any] | None = None,
    ) -> int:
        """Add a tensor of `dtype` (`int8`, `int32`, `float32`, ...); `data` makes it a constant. Returns its index.

        scale: one number, or one for each slice along `axis` with zero points 0; None leaves it unquantized.
        """
        t = self.schema.TensorT()
        t.name = name.encode()
        t.shape = np.asarray(shape, np.int32)
        t.type = getattr(self.schema.TensorType, dtype.upper())
        t.hasRank = True
        t.buffer = 0 if data is None else self.buffer(np.ascontiguousarray(data))
        if scale is not None:
            q = self.schema.QuantizationParametersT()
            q.scale = np.atleast_1d(np.asarray(scale, np.float32))
            q.zeroPoint = np.full(q.scale.shape, zero_point, np.int64)
            q.quantizedDimension = axis
            t.quantization = q
        self.tensors.append(t)
        return len(self.tensors) - 1

    def constant(self, name: str, data: NDArray[Any]) -> int:
        """An unquantized constant: shapes, axes, paddings."""
        return self.tensor(name, data.shape, str(data.dtype), data=data)

    def buffer(self, data: NDArray[Any]) -> int:
        """Store the bytes of `data` once; the same bytes get the same index."""
        raw = data.tobytes()
        if raw not in self._shared:
            b = self.schema.BufferT()
            b.data = np.frombuffer(raw, np.uint8)
            self.buffers.append(b)
            self._shared[raw] = len(self.buffers) - 1
        return self._shared[raw]

    def operator(self, code: str, inputs: Sequence[int], outputs: Sequence[int], **options: Any) -> None:
        """Append a builtin operator. `options` are the fields of its options table, `table` the table's name."""
        op = self.schema.OperatorT()
        version = lowest(code, [self.tensors[i] for i in inputs], [self.tensors[i] for i in outputs], options)
        self.runtimes.add(since(code, version))
        op.opcodeIndex = self.code(getattr(self.schema.BuiltinOperator, code), b"", version)
        op.inputs = np.asarray(inputs, np.int32)
        op.outputs = np.asarray(outputs, np.int32)
        table = options.pop("table", None)
        if table is not None:
            op.builtinOptionsType = getattr(self.schema.BuiltinOptions, table)
            op.builtinOptions = getattr(self.schema, f"{table}T")()
            for field, value in options.items():
                assert hasattr(op.builtinOptions, field), f"{table} has no field {field}"
                setattr(op.builtinOptions, field, value)
        self.operators.append(op)

    def code(self, builtin: int, custom: bytes, version: int) -> int:
        """Index of an operator code, added where new."""
        key = (builtin, custom, version)
        if key not in self._code_index:
            c = self.schema.OperatorCodeT()
            c.builtinCode = builtin
            c.deprecatedBuiltinCode = min(builtin, 127)
            c.customCode = custom or None
            c.version = version
            self.codes.append(c)
            self._code_index[key] = len(self.codes) - 1
        return self._code_index[key]

    def serialize(self, inputs: Sequence[tuple[str, int]], outputs: Sequence[tuple[str, int]]) -> bytes:
        """The finished file. `inputs` and `outputs` are (signature name, tensor index), in the program's order.

        Tensors of outputs are named as the signature names them.
        """
        s = self.schema
        graph = s.SubGraphT()
        graph.name = b"main"
        ports = [self.tensors[index] for _, index in (*outputs, *inputs)]
        for (name, _), tensor in zip(outputs, ports, strict=False):
            tensor.name = name.encode()
        inner = [t for t in self.tensors if all(t is not port for port in ports)]
        _name_apart([*(t for other in self.others for t in other.tensors), *inner, *ports])
        graph.tensors = self.tensors
        graph.operators = _topological(self.operators, {index for _, index in inputs})
        graph.inputs = np.asarray([index for _, index in inputs], np.int32)
        graph.outputs = np.asarray([index for _, index in outputs], np.int32)
        signature = s.SignatureDefT()
        signature.signatureKey = b"serving_default"
        signature.inputs = [self._named(name, index) for name, index in inputs]
        signature.outputs = [self._named(name, index) for name, index in outputs]
        model = s.ModelT()
        model.version = 3
        model.description = b"edgeq"
        model.operatorCodes = self.codes
        model.subgraphs = [graph, *self.others]
        model.signatureDefs = [signature]
        model.buffers = self.buffers
        runtime = newest(["1.5.0", *self.runtimes]).encode().ljust(RUNTIME_BYTES, b"\0")
        model.metadata = [self._metadata(name, data) for name, data in ({RUNTIME: runtime} | self.metadata).items()]
        _drop_unread(model)
        return pack(model)

    def _metadata(self, name: bytes, data: bytes) -> Any:
        entry = self.schema.MetadataT()
        entry.name, entry.buffer = name, self.buffer(np.frombuffer(data, np.uint8))
        return entry

    def _named(self, name: str, index: int) -> Any:
        entry = self.schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), index
        return entry


class _AlignedBuffer:
    """A BufferT whose bytes start at a multiple of ALIGNMENT, which the generated `Pack` does not see to."""

    def __init__(self, data: NDArray[np.uint8] | None, schema: Any) -> None:
        self.data, self.schema = data, schema

    def Pack(self, builder: Any) -> Any:
        vector = None
        if self.data is not None and len(self.data):
            builder.StartVector(1, len(self.data), ALIGNMENT)
            builder.head -= len(self.data)
            builder.Bytes[builder.head : builder.head + len(self.data)] = self.data.tobytes()
            vector = builder.EndVector()
        self.schema.BufferStart(builder)
        if vector is not None:
            self.schema.BufferAddData(builder, vector)
        return self.schema.BufferEnd(builder)


def _drop_unread(model: Any) -> None:
    """Leave out buffers that no tensor reads, as those of float weights that are stored as int8 instead."""
    entries = [*(t for graph in model.subgraphs for t in graph.tensors), *model.metadata]
    kept = sorted({0, *(entry.buffer for entry in entries)})
    place = {old: new for new, old in enumerate(kept)}
    for entry in {id(e): e for e in entries}.values():
        entry.buffer = place[entry.buffer]
    model.buffers = [model.buffers[old] for old in kept]


def _name_apart(tensors: Sequence[Any]) -> None:
    """No two tensors of a file by one name: other readers (OpenVINO, tf2onnx) look constants up by it. The last keeps it."""
    taken = {t.name for t in tensors}
    seen: set[bytes] = set()
    for tensor in reversed(tensors):
        name, count = tensor.name, 0
        while tensor.name in seen or (count and tensor.name in taken):
            count += 1
            tensor.name = name + f"_{count}".encode()
        seen.add(tensor.name)


def _topological(operators: Sequence[Any], given: set[int]) -> list[Any]:
    """`operators` in an order in which each reads only what was written before; stable where they are in order."""
    producer = {int(t): op for op in operators for t in op.outputs}
    order: list[Any] = []
    done: set[int] = set()
    for root in operators:
        stack = [root]
        while stack:
            op = stack[-1]
            if id(op) in done:
                stack.pop()
                continue
            waiting = [
                producer[int(t)]
                for t in op.inputs
                if int(t) in producer and int(t) not in given and id(producer[int(t)]) not in done
            ]
            if waiting:  # one at a time, so that the stack is a path, and no path is longer than all operators
                assert len(stack) <= len(operators), "operators form a cycle"
                stack.append(waiting[-1])
            else:
                done.add(id(op))
                order.append(op)
                stack.pop()
    return order
