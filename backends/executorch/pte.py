"""Read a .pte back: the instructions of its method and the XNNPACK graphs inside its delegates."""

from __future__ import annotations

import importlib.resources
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.graph.quiet import quiet
from edgeq.spec import EdgeqError

XNNPACK_HEADER = b"XH00"  # at byte 4 of a delegate's data, see XNNHeader in ExecuTorch's xnnpack_graph_serialize.py
PLUMBING = frozenset({"Convert", "StaticTranspose"})  # inserted between layouts and at the edges of the integers
NO_HANDLE = 65535  # ExecuTorch's debug handle of operators it inserted itself


@dataclass(frozen=True, slots=True)
class PteOp:
    """One operator of a .pte, in order of execution.

    name: unique in the file (`0.3 Conv2d`: instruction, ordinal in the delegate, XNNPACK's type; `1 aten::mean`).
    type: XNNPACK's operator type, or the kernel's name.  instruction: index in the method's chain.
    delegated: whether XNNPACK runs it.  reads, writes: XNNPACK datatypes (`fp32`, `qint8`, ...) of the activations; of
        a kernel `reads` has all its tensors, in ExecuTorch's words (`char`, `long`, ...) where XNNPACK has none.
    weight: datatype of the constant operand, if any.  handle: ExecuTorch's debug handle, None where inserted.
    """

    name: str
    type: str
    instruction: int
    delegated: bool
    reads: tuple[str, ...] = ()
    writes: str = ""
    weight: str | None = None
    handle: int | None = None

    @property
    def inserted(self) -> bool:
        """Layout and type changes that no operator of the network asked for."""
        return self.type == "Convert" or (self.type in PLUMBING and self.handle is None)


def executorch_package() -> Any:
    """The `executorch` package.

    Raises:
        EdgeqError: it is not installed.
    """
    try:
        with quiet():
            import executorch
            import torchao  # noqa: F401  executorch's exporter imports it
    except ImportError as error:
        raise EdgeqError("the executorch backend needs executorch: pip install 'edgeq[executorch]'") from error
    return executorch


def check_pte(path: Path) -> None:
    """Raises EdgeqError unless `path` is a whole .pte: its magic in place, no segment past its end."""
    executorch_package()
    from executorch.exir._serialize._program import _get_extended_header

    if not path.is_file():
        raise EdgeqError(f"{path} does not exist: export it first")
    data = path.read_bytes()
    header = _get_extended_header(data) if data[4:6] == b"ET" else None
    if data[4:6] != b"ET" or (header is not None and not header.is_valid()):
        raise EdgeqError(f"{path} is no ExecuTorch program: export it again")
    if header is None:  # neither constants nor delegates: the flatbuffer alone, which the runtime checks
        return
    wanted = max(header.program_size, header.segment_base_offset + header.segment_data_size)
    if len(data) < wanted:
        raise EdgeqError(f"{path} is cut off ({len(data)} of {wanted} bytes): export it again")


def read_pte(data: bytes) -> tuple[PteOp, ...]:
    """Every operator of the method `forward`, delegates opened."""
    from executorch.exir._serialize._program import deserialize_pte_binary
    from executorch.exir.schema import DelegateCall, KernelCall

    program = deserialize_pte_binary(data).program
    (plan,) = program.execution_plan
    found: list[PteOp] = []
    for index, instruction in enumerate(i for chain in plan.chains for i in chain.instructions):
        call = instruction.instr_args
        if isinstance(call, KernelCall):
            kernel = plan.operators[call.op_index].name
            touched = tuple(_datatypes(plan.values, call.args))
            found.append(PteOp(f"{index} {kernel}", kernel, index, delegated=False, reads=touched))
        elif isinstance(call, DelegateCall):
            delegate = plan.delegates[call.delegate_index]
            payload = bytes(program.backend_delegate_data[delegate.processed.index].data)
            found += _delegate_ops(_xnnpack_graph(payload), index)
    return tuple(found)


def delegates(data: bytes) -> Iterator[tuple[dict[str, Any], Callable[[int], bytes]]]:
    """Each of XNNPACK's graphs in the file as JSON, with what gives its constants by their index."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary(data)
    named = file.named_data
    for plan in file.program.execution_plan:
        for delegate in plan.delegates:
            payload = bytes(file.program.backend_delegate_data[delegate.processed.index].data)
            graph = _xnnpack_graph(payload)
            begin = int.from_bytes(payload[18:26], "little")

            def constant(
                index: int, told: list[dict[str, Any]] = graph["constant_data"], own: bytes = payload[begin:]
            ) -> bytes:
                """A constant lies in the file under its name, or in the delegate's own bytes."""
                entry = told[index]
                if entry["named_key"] and named is not None:
                    return bytes(named.buffers[named.pte_data[entry["named_key"]].buffer_index])
                return own[entry["offset"] : entry["offset"] + entry["size"]]

            yield graph, constant


def _datatypes(values: Sequence[Any], indices: Sequence[int]) -> Iterator[str]:
    """Datatypes of the tensors among a kernel's arguments, lists opened."""
    from executorch.exir.schema import OptionalTensorList, Tensor, TensorList

    for at in indices:
        argument = values[at].val if at >= 0 else None
        if isinstance(argument, Tensor):
            name = argument.scalar_type.name.lower()
            yield {"float": "fp32", "half": "fp16"}.get(name, name)
        elif isinstance(argument, (TensorList, OptionalTensorList)):
            yield from _datatypes(values, argument.items)


def _xnnpack_graph(payload: bytes) -> dict[str, Any]:
    """The flatbuffer of one delegate as JSON, by the flatc that the wheel carries; a tensor's scale as the bits of its float32.

    flatc prints floats with six digits behind the point, so it is told that these four bytes are an integer.
    """
    import executorch.backends.xnnpack.serialization as serialization
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    assert payload[4:8] == XNNPACK_HEADER, "the delegate is not XNNPACK"
    start, size = (int.from_bytes(payload[at : at + 4], "little") for at in (10, 14))
    schema = importlib.resources.files(serialization).joinpath("runtime_schema.fbs").read_text()
    schema, told = re.subn(r"(table PerTensorQuant \{\s*scale:)float;", r"\1uint;", schema)
    assert told == 1, "the schema of XNNPACK's graphs has no PerTensorQuant as we know it"
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "schema.fbs").write_text(schema)
        (home / "graph.bin").write_bytes(payload[start : start + size])
        _flatc_decompile(folder, str(home / "schema.fbs"), str(home / "graph.bin"), ["--raw-binary"])
        text = (home / "graph.json").read_text()
    graph: dict[str, Any] = json.loads(re.sub(r":\s*(-?)inf\b", r": \1Infinity", text))
    return graph


def _delegate_ops(graph: dict[str, Any], instruction: int) -> list[PteOp]:
    datatypes: dict[int, str] = {}
    constants: set[int] = set()
    for entry in graph["xvalues"]:
        tensor = entry["xvalue_union"].get("tensor_value", entry["xvalue_union"])
        datatypes[tensor["id_out"]] = tensor["datatype"].removeprefix("xnn_datatype_")
        if tensor["constant_buffer_idx"]:
            constants.add(tensor["id_out"])
    found = []
    for ordinal, node in enumerate(graph["xnodes"]):
        kind = node["xnode_union_type"].removeprefix("_XNN").removeprefix("XNN")
        ids = {k: v for k, v in node["xnode_union"].items() if k.endswith("_id") and v in datatypes}
        inputs = [v for k, v in ids.items() if k not in ("output_id", "bias_id")]
        handle = node["debug_handle"]
        found.append(
            PteOp(
                f"{instruction}.{ordinal} {kind}",
                kind,
                instruction,
                delegated=True,
                reads=tuple(datatypes[i] for i in inputs if i not in constants),
                writes=datatypes[ids["output_id"]],
                weight=next((datatypes[i] for i in inputs if i in constants), None),
                handle=None if handle == NO_HANDLE else handle,
            )
        )
    return found
