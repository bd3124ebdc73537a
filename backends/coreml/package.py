"""The .mlpackage on disk: its MIL program read back into plain objects, its identifiers and dates normalised."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeq.graph.quiet import quiet
from edgeq.spec import EdgeqError

SPEC = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")

# MIL.proto's DataType numbers: name, NumPy dtype of the stored bytes, reader of the weight file
_TYPES: dict[int, tuple[str, Any, str | None]] = {
    1: ("bool", np.bool_, None),
    2: ("string", None, None),
    10: ("fp16", np.float16, "read_fp16_data"),
    11: ("fp32", np.float32, "read_float_data"),
    21: ("int8", np.int8, "read_int8_data"),
    22: ("int16", np.int16, "read_int16_data"),
    23: ("int32", np.int32, "read_int32_data"),
    31: ("uint8", np.uint8, "read_uint8_data"),
    32: ("uint16", np.uint16, "read_uint16_data"),
    33: ("uint32", np.uint32, "read_uint32_data"),
}

Value = Tensor | str


@dataclass(frozen=True, slots=True)
class Variable:
    """A named value of the program: dtype in MIL's words (`fp32`, `int8`, ...), static shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """One MIL operator. inputs: parameter → names of the values it reads, several where MIL takes a tuple."""

    type: str
    inputs: Mapping[str, tuple[str, ...]]
    outputs: tuple[Variable, ...]

    @property
    def name(self) -> str:
        """The name of its first output."""
        return self.outputs[0].name


@dataclass(frozen=True, slots=True)
class Program:
    """The `main` function of a saved package: constants by name, operators in order of execution.

    inputs, outputs: in the order of the model's description, which is the order of the exported program.
    """

    inputs: tuple[Variable, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Value]
    operations: tuple[Operation, ...]


def coremltools() -> Any:
    """The coremltools package, imported in silence: it reports every library it was not tested with.

    Raises:
        EdgeqError: it is not installed.
    """
    with quiet():
        try:
            import coremltools
            import coremltools.libmilstoragepython
        except ImportError as error:
            raise EdgeqError("the coreml backend needs coremltools: pip install 'edgeq[coreml]'") from error
    return coremltools


def read(path: Path) -> Program:
    """Read a saved package back: the specification by its protobuf schema, the weights by their offsets.

    Raises:
        EdgeqError: the folder is no ML program package, or a file of it is cut short.
    """
    spec = _specification(path)
    if spec.WhichOneof("Type") != "mlProgram" or "main" not in spec.mlProgram.functions:
        raise EdgeqError(f"{path} holds no whole ML program: export it again with edgeq (iOS 17 or later)")
    main = spec.mlProgram.functions["main"]
    block = main.block_specializations[main.opset]
    constants: dict[str, Value] = {}
    operations = []
    for op in block.operations:
        outputs = tuple(_variable(o) for o in op.outputs)
        if op.type == "const":
            constants[outputs[0].name] = _value(op.attributes["val"], path)
            continue
        inputs: dict[str, tuple[str, ...]] = {}
        for parameter, value in op.attributes.items():  # the constexpr operators keep their operands here
            if parameter != "name":
                inputs[parameter] = (f"{outputs[0].name}.{parameter}",)
                constants[inputs[parameter][0]] = _value(value, path)
        for parameter, argument in op.inputs.items():
            names = []
            for at, binding in enumerate(argument.arguments):
                if binding.WhichOneof("binding") == "value":
                    names.append(f"{outputs[0].name}.{parameter}.{at}")
                    constants[names[-1]] = _value(binding.value, path)
                else:
                    names.append(binding.name)
            inputs[parameter] = tuple(names)
        operations.append(Operation(op.type, inputs, outputs))
    declared = {i.name: _variable(i) for i in main.inputs}
    return Program(
        tuple(declared[i.name] for i in spec.description.input),
        tuple(o.name for o in spec.description.output),
        constants,
        tuple(operations),
    )


def normalise(path: Path) -> None:
    """Make the bytes of a saved package depend on its program alone.

    The manifest's random identifiers become hashes of the items' paths, the conversion date is dropped, protobuf
    maps are written in sorted order, and files that the manifest does not list are removed.
    """
    manifest = json.loads((path / "Manifest.json").read_text())
    renamed = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, e["path"])) for old, e in manifest["itemInfoEntries"].items()}
    manifest["itemInfoEntries"] = {renamed[old]: entry for old, entry in manifest["itemInfoEntries"].items()}
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    # as coremltools itself writes it, newline and all: it writes the file anew whenever it only reads a package
    (path / "Manifest.json").write_text(json.dumps(manifest, indent=4, sort_keys=True) + "\n")
    for stray in path.iterdir():
        if stray.name not in ("Manifest.json", "Data"):
            stray.unlink()
    spec = _specification(path)
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    (path / SPEC).write_bytes(spec.SerializeToString(deterministic=True))


def replace(fresh: Path, path: Path) -> None:
    """Put the finished folder `fresh` in the place of `path`; the folder that stood there goes last.

    Renaming cannot replace a folder that holds files, so the old one steps aside first.
    """
    aside = path.with_name(f".{path.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    if path.exists():
        path.rename(aside)
    fresh.rename(path)
    if aside.exists():
        shutil.rmtree(aside)


def _specification(path: Path) -> Any:
    """The package's Model message."""
    model = coremltools().proto.Model_pb2.Model()
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # ships no types

    try:
        model.ParseFromString((path / SPEC).read_bytes())
    except (OSError, DecodeError) as error:
        raise EdgeqError(f"{path} is no Core ML package or is damaged ({error}): export it again") from error
    return model


def _variable(named: Any) -> Variable:
    """Name, dtype and shape of a NamedValueType."""
    tensor = named.type.tensorType
    return Variable(named.name, _dtype(tensor), tuple(int(d.constant.size) for d in tensor.dimensions))


def _dtype(tensor: Any) -> str:
    if tensor.dataType not in _TYPES:
        raise EdgeqError(f"a value of MIL data type {tensor.dataType} is none that edgeq reads")
    return _TYPES[tensor.dataType][0]


def _value(value: Any, path: Path) -> Value:
    """A constant: immediate in the specification, or in the weight file at an offset."""
    tensor = value.type.tensorType
    name, stored, reader = _TYPES[tensor.dataType] if tensor.dataType in _TYPES else (_dtype(tensor), None, None)
    shape = tuple(int(d.constant.size) for d in tensor.dimensions)
    if value.WhichOneof("value") == "blobFileValue":
        flat = _blob(path, reader, value.blobFileValue.offset, stored)
    else:
        immediate = value.immediateValue.tensor
        field = immediate.WhichOneof("value")
        raw = getattr(immediate, field).values
        if name == "string":
            return str(raw[0])
        flat = np.frombuffer(raw, stored) if field == "bytes" else np.array(raw, stored)
    if flat.size != int(np.prod(shape)):
        raise EdgeqError(f"{path}: a constant of shape {shape} holds {flat.size} values; the file is damaged")
    if name in ("uint16", "uint32"):
        flat = flat.astype(np.int32)  # torch computes little in them; shapes and indices fit int32
    return torch.from_numpy(flat.reshape(shape).copy())


def _blob(path: Path, reader: str | None, offset: int, stored: Any) -> np.ndarray[Any, Any]:
    storage = coremltools().libmilstoragepython
    try:
        raw = np.asarray(getattr(storage._BlobStorageReader(str(path / WEIGHTS)), str(reader))(offset))
    except (RuntimeError, ValueError, IndexError) as error:
        raise EdgeqError(f"{path / WEIGHTS} is damaged ({error}): export it again") from error
    return raw.view(stored) if raw.dtype.itemsize == np.dtype(stored).itemsize else raw.astype(stored)
