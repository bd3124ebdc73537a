"""QDQ or float program → `.tflite`: integer operators written as they stand, float islands through litert-torch.

The flatbuffer is ours, not a converter's, so that weights, biases, scales and zero points in it are the program's own
bytes; `check` reads them back. litert-torch sees the float islands only (a float program is one island).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from edgeq.backends.litert import curves, islands
from edgeq.backends.litert.flatbuffer import ModelWriter, schema
from edgeq.backends.litert.metadata import (
    CHANNELS_LAST,
    NAME,
    image,
    labelled,
    labels,
    metadata,
    steps_off,
    unbelieved,
    with_files,
)
from edgeq.backends.litert.operators import Emitter
from edgeq.backends.litert.parts import Perm, Value
from edgeq.backends.litert.run import LAST, SHIFT, described, ports
from edgeq.graph.arithmetic.litert_reference import LIMITED, MISSING
from edgeq.graph.integer import DEQUANTIZE, QUANTIZE, IntegerOp, IntegerProgram, members, read, tensor_qparams, without
from edgeq.graph.ops import node_arg, value
from edgeq.spec import Artifact, EdgeqError, OpPlacement, QParams, TensorInfo

aten = torch.ops.aten

TURNS = (aten.permute.default, aten.to.dtype, aten._to_copy.default)  # that keep every value of bytes
BOUNDARY = ("QUANTIZE", "DEQUANTIZE")
LAYOUT = "TRANSPOSE"
ROUNDING = 0.501  # of a step: what an input's own rounding may do to an image's bytes


def lower(
    program: ExportedProgram,
    folder: Path,
    *,
    name: str = "model",
    layers: Mapping[str, str] = {},
    io: Literal["int8", "uint8", "float"] = "int8",
    outputs: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
    channels_last: bool | None = None,
) -> Artifact:
    """Write `folder/name.tflite` and return it with its coverage, read off the file.

    layers: node name → layer key. io: `int8` takes and gives integers wherever the program quantizes its inputs and
    outputs (scale and zero point are in the file); `uint8` the same integers plus 128, shifted by a QUANTIZE at the
    file's edge; `float` keeps float32 there. Integer inputs stay what they are.
    outputs: their names, where they have any; else output_0, output_1, ... preprocessing: of the task; where it describes
    an image, that becomes TFLite metadata. channels_last: whether that input (without one, every input of four axes) has its
    channels last, as pixels lie; None: where it is an image of bytes.

    Raises:
        EdgeqError: an operator has no LiteRT form, or the litert packages are missing.
    """
    integers = without(read(program, layers), MISSING, LIMITED, keep=curves.expressible)
    walk = _Walk(integers, io, layers, outputs, preprocessing, channels_last)
    data = walk.write()
    problems = check(data, integers, walk.renamed)
    if problems:
        raise EdgeqError(
            f"{name}.tflite does not hold the program's numbers: {problems[0]}; please report this as a bug"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.tflite"
    beside = path.with_suffix(f".tmp{os.getpid()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    of = members(integers, layers) | walk.origins
    rows = coverage(data, of | {port: _keys(name, of) for name, port in walk.renamed.items()})
    transposes = sum(row.kind == LAYOUT and row.status == "integer" for row in rows)
    notes = [f"{transposes} int8 TRANSPOSE operators between torch's axis order and LiteRT's"] if transposes else []
    notes += walk.notes
    given, made = (tuple(_port(d) for d in details) for details in ports(path))
    return Artifact("litert", path, rows, tuple(notes), given, made)


def _port(detail: Mapping[str, Any]) -> TensorInfo:
    """An input or output of the file, as an app meets it."""
    scale, zero_point = detail["quantization"]
    limits = (0, 255) if detail["dtype"] is np.uint8 else (-128, 127)
    qparams = QParams((scale,), (zero_point,), *limits) if scale else None
    return TensorInfo(detail["name"], tuple(detail["shape"]), np.dtype(detail["dtype"]).name, qparams)


def _info(node: Node) -> TensorInfo:
    """An input of the program, with its numbers where everything that reads it quantizes it by the same."""
    recorded, users = value(node), list(node.users)
    numbers = {(u.args[1], u.args[2]) if u.target is QUANTIZE else None for u in users}
    qparams = tensor_qparams(users[0]) if len(numbers) == 1 and None not in numbers else None
    return TensorInfo(node.name, tuple(recorded.shape), str(recorded.dtype).removeprefix("torch."), qparams)


class _Walk:
    """One pass over the program's nodes; `emitter` holds the file that comes of it."""

    def __init__(
        self,
        program: IntegerProgram,
        io: str,
        layers: Mapping[str, str],
        names: Sequence[str],
        preprocessing: Mapping[str, Any] | None,
        channels_last: bool | None,
    ) -> None:
        self.program, self.io, self.layers, self.names = program, io, layers, names
        self.graph = program.module.graph
        self.placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        self.picture = image(preprocessing, [_info(n) for n in self.placeholders])
        self.classes = labels(preprocessing) if self.picture is not None else ()
        self.last = self._channels_last(channels_last)  # inputs whose channels stand last
        self.shifted = self._shifted()
        self.perms: dict[Node, Perm] = {}  # float inputs that stand in another order than torch's
        self.notes: list[str] = []
        self.writer = ModelWriter()
        self.emitter = Emitter(self.writer)
        self.values: dict[Node, Value] = {}  # int8, by quantize node (or placeholder)
        self.floats: dict[Node, int] = {}  # float tensors, by node (or by the int8 value's node, dequantized)
        self.widened: dict[int, int] = {}  # int8 tensors → float ones that curves read, axes lying alike
        self.islands: list[Node] = []
        self.origins: dict[str, tuple[str, ...]] = {}  # tensor of an island → layers that its operator computes
        self.renamed: dict[
            str, str
        ] = {}  # tensors of outputs: what they stand for in the program → their name in the file

    def write(self) -> bytes:
        results: list[Node] = tree_leaves(self.graph.output_node().args[0])
        inputs = [(n.name, self._input(n)) for n in self.placeholders]
        self._convert_islands(results)
        for node in self.graph.nodes:
            if node.target is QUANTIZE and node not in self.values:
                op = self.program.ops.get(node.name)
                self.values[node] = self._quantize(node) if op is None else self._integer(op)
        names = self.names or [f"output_{i}" for i in range(len(results))]
        outputs = [(name, self._output(node)) for name, node in zip(names, results, strict=True)]
        return self._finish(inputs, outputs)

    def _channels_last(self, wanted: bool | None) -> set[Node]:
        """Inputs whose channels stand last in the file, and do not in the program.

        Raises:
            EdgeqError: it was asked for, and no input has four axes.
        """
        if wanted is None:
            wanted = self.io == "uint8" and self.picture is not None
        elif wanted and all(len(value(n).shape) != len(CHANNELS_LAST) for n in self.placeholders):
            raise EdgeqError("no input has four axes, of which the channels could be last; leave --channels-last out")
        if not wanted:
            return set()
        if self.picture is None:
            return {n for n in self.placeholders if len(value(n).shape) == len(CHANNELS_LAST)}
        already = self.picture.axes[2] == len(CHANNELS_LAST) - 1
        return set() if already else {self.placeholders[self.picture.index]}

    def _input(self, node: Node) -> int:
        recorded = value(node)
        shape = tuple(recorded.shape)
        perm = CHANNELS_LAST if node in self.last else tuple(range(len(shape)))
        grid = _info(node).qparams
        if self.io != "float" and grid is not None:
            name = node.name if self.io == "int8" else f"{node.name}_int8"
            made = self.emitter._value(name, shape, perm, grid)
            for user in node.users:
                self.values[user] = made
            if self.io == "int8":
                return made.index
            index = self._bytes(node.name, made)
            self.writer.operator("QUANTIZE", [index], [made.index], table="QuantizeOptions")
            return index
        dtype = str(recorded.dtype).removeprefix("torch.")
        mine = {quantize: order for quantize, (source, order) in self.shifted.items() if source is node}
        index = self.writer.tensor(node.name, [shape[a] for a in perm], dtype, 1.0 if mine else None)
        self.floats[node] = index
        for quantize, turned in mine.items():  # stored axis → the axis that it is where it is quantized
            axes = tuple(turned.index(a) for a in perm)
            made = self.emitter._value(quantize.name, value(quantize).shape, axes, tensor_qparams(quantize))
            self.writer.operator("QUANTIZE", [index], [made.index], table="QuantizeOptions")
            self.values[quantize] = made
        if node not in self.last or mine:
            return index
        if grid is not None:
            self.perms[node] = perm
        else:
            self.floats[node] = self.writer.tensor(f"{node.name}_channels_first", shape, dtype)
            order = self.writer.constant("ints", np.asarray([perm.index(a) for a in range(len(perm))], np.int32))
            self.writer.operator("TRANSPOSE", [index, order], [self.floats[node]], table="TransposeOptions")
        return index

    def _shifted(self) -> dict[Node, tuple[Node, Perm]]:
        """Quantize nodes that only shift an input of bytes: the input, and which of its axes each of theirs is.

        None of an input that operators in float read as well.
        """
        found: dict[Node, tuple[Node, Perm]] = {}
        for node in self.placeholders:
            if value(node).dtype == torch.uint8:
                ends = self._ends(node, tuple(range(value(node).dim())))
                found |= {end: (node, order) for end, order in (ends or {}).items()}
        return found

    def _ends(self, node: Node, order: Perm) -> dict[Node, Perm] | None:
        """The quantize nodes of scale 1 that bytes go to, with their axes' order there; None where they go elsewhere too."""
        found: dict[Node, Perm] = {}
        for user in node.users:
            if user.target is QUANTIZE and (user.args[1], user.args[2]) == (1.0, -SHIFT):
                found[user] = order
            elif user.target in TURNS and value(user).dtype in (torch.uint8, torch.float32):
                dims = node_arg(user, 1, None) if user.target is aten.permute.default else range(len(order))
                ends = self._ends(user, tuple(order[int(d)] for d in dims))
                if ends is None:
                    return None
                found |= ends
            elif user.users or user.op == "output":  # what nobody reads only asserts
                return None
        return found

    def _bytes(self, name: str, of: Value) -> int:
        """A uint8 tensor for the integers of `of`, which stand there plus 128."""
        tensor = self.writer.tensors[of.index]
        scale, zero_point = tensor.quantization.scale, int(tensor.quantization.zeroPoint[0])
        return self.writer.tensor(name, tensor.shape, "uint8", scale, zero_point + SHIFT)

    def _convert_islands(self, results: list[Node]) -> None:
        """Convert everything the integer operators and the outputs want from float computation."""
        graph = self.graph.nodes
        asked = [
            n.args[0] for n in graph if n.target is QUANTIZE and n.name not in self.program.ops and n not in self.values
        ]
        wanted = [n for n in dict.fromkeys([*asked, *results]) if isinstance(n, Node) and not islands._is_input(n)]
        self.islands = wanted
        if not wanted:
            return
        module, inputs = islands.cut_out(self.program, wanted)
        model = islands.convert(module, inputs)
        told = islands.origins(model, module)
        for tensor, names in told.items():
            self.origins[tensor] = tuple(dict.fromkeys(self.layers[n] for n in names if n in self.layers))
        sources = []
        for node in inputs:
            if node.target is DEQUANTIZE:
                source = node.args[0]
                assert isinstance(source, Node)
                self.floats[source] = self._float_tensor(f"{source.name}_float", node)
                sources.append(self.floats[source])
            else:
                sources.append(self.floats[node])
        for node, index in zip(wanted, islands.merge(self.writer, model, sources), strict=True):
            wanted_type = str(value(node).dtype).removeprefix("torch.").upper()
            self.floats[node] = islands.cast(self.writer, index, getattr(self.writer.schema.TensorType, wanted_type))
        islands.fold_weights(self.writer, islands.weight_only(self.program), self.layers, told)

    def _float_tensor(self, name: str, node: Node) -> int:
        return self.writer.tensor(name, tuple(value(node).shape), "float32")

    def _quantize(self, node: Node) -> Value:
        """Integers of a float tensor: an island's output, or an input of the program."""
        source = node.args[0]
        assert isinstance(source, Node)
        shape = tuple(value(node).shape)
        perm = self.perms.get(source, tuple(range(len(shape))))
        made = self.emitter._value(node.name, shape, perm, tensor_qparams(node))
        self.writer.operator("QUANTIZE", [self.floats[source]], [made.index], table="QuantizeOptions")
        return made

    def _integer(self, op: IntegerOp) -> Value:
        by_name = {n.name: n for n in self.graph.nodes}
        inputs = [self.values[by_name[name]] for name in op.inputs]
        if op.kind == "curve":
            return self._curve(op, inputs[0])
        if op.table is not None:
            return self.emitter.gather(op, inputs[0], self.floats[op.table])
        return self.emitter.emit(op, inputs)

    def _curve(self, op: IntegerOp, x: Value) -> Value:
        """A curve in float between two converting operators, its axes as they lie."""
        stored = [x.shape[a] for a in x.perm]
        if x.index not in self.widened:
            self.widened[x.index] = self.writer.tensor(f"{op.name}_float", stored, "float32")
            self.writer.operator("DEQUANTIZE", [x.index], [self.widened[x.index]], table="DequantizeOptions")
        made = self.emitter._value(op.name, x.shape, x.perm, op.output_qparams)
        found = curves.emit(self.writer, self.program.module, op, self.widened[x.index], stored)
        self.writer.operator("QUANTIZE", [found], [made.index], table="QuantizeOptions")
        return made

    def _output(self, node: Node) -> int:
        if node.target is not DEQUANTIZE:
            return self.floats[node]
        source = node.args[0]
        assert isinstance(source, Node)
        if self.io != "float":
            made = self.emitter.plain(self.values[source])
            if self.io == "int8":
                return made.index
            index = self._bytes(f"{source.name}_uint8", made)
            self.writer.operator("QUANTIZE", [made.index], [index], table="QuantizeOptions")
            return index
        if source not in self.floats:
            self.floats[source] = self._float_tensor(f"{source.name}_float", node)
        return self.floats[source]

    def _finish(self, inputs: list[tuple[str, int]], outputs: list[tuple[str, int]]) -> bytes:
        for source, index in self.floats.items():
            if source in self.values:
                plain = self.emitter.plain(self.values[source])
                self.writer.operator("DEQUANTIZE", [plain.index], [index], table="DequantizeOptions")
        outputs = self._distinct(inputs, outputs)
        self.renamed = {self.writer.tensors[index].name.decode(): name for name, index in outputs}
        if self.last:
            places = [place for place, node in enumerate(self.placeholders) if node in self.last]
            self.writer.metadata[LAST] = bytes(places)
        named = self.picture is not None and self._describe(inputs, outputs)
        data = self.writer.serialize(inputs, outputs)
        return with_files(data, self.classes) if named else data

    def _describe(self, inputs: list[tuple[str, int]], outputs: list[tuple[str, int]]) -> bool:
        """Write TFLite metadata of the image and of what comes of it; whether it names a file of labels."""
        assert self.picture is not None
        node = self.placeholders[self.picture.index]
        if reason := unbelieved(self.picture, _info(node)):
            self.notes.append(reason)
            return False
        picture = dataclasses.replace(self.picture, axes=(1, 2, 3)) if node in self.last else self.picture
        tensors = self.writer.tensors
        given, made = (
            [_port(described(tensors[i]) | {"name": name}) for name, i in ends] for ends in (inputs, outputs)
        )
        named = labelled(made, self.classes)
        if self.classes and not named:
            self.notes.append(
                f"PREPROCESSING's {len(self.classes)} labels stand for no output's last axis "
                f"({', '.join(f'{o.name} {list(o.shape)}' for o in made)}) and are left out of the metadata"
            )
        off, told = steps_off(picture, given[picture.index]), given[picture.index].dtype
        if off > ROUNDING and told == "uint8":
            other = "export --io float --channels-last" if picture.even else "normalise inside the network"
            self.notes.append(
                f"{node.name} takes normalised pixels by its scale, not the image's bytes as they are, which MediaPipe's Task "
                f"library gives a uint8 input: they differ by up to {off:.3g} steps; {other} for it"
            )
        if self.io == "uint8" and told == "float32":
            self.notes.append(f"{node.name} stays float32, as operators in float read it")
        self.writer.metadata[NAME] = metadata(picture, given, made, self.classes)
        return named

    def _distinct(self, inputs: list[tuple[str, int]], outputs: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Copies where an output is an input or is given twice: the interpreter wants tensors of their own."""
        taken = {index for _, index in inputs}
        result = []
        for name, index in outputs:
            if index in taken:
                tensor = self.writer.tensors[index]
                twin = self.writer.schema.TensorT()
                twin.__dict__.update(tensor.__dict__)
                twin.name = name.encode()
                self.writer.tensors.append(twin)
                copy = len(self.writer.tensors) - 1
                shape = np.asarray(tensor.shape, np.int32)
                self.writer.operator(
                    "RESHAPE",
                    [index, self.writer.constant("ints", shape)],
                    [copy],
                    table="ReshapeOptions",
                    newShape=shape,
                )
                index = copy
            taken.add(index)
            result.append((name, index))
        return result


def check(data: bytes, program: IntegerProgram, renamed: Mapping[str, str] = {}) -> list[str]:
    """Differences between the numbers in a file and the program's, one sentence each; none when all are the same.

    renamed: tensors that bear another name in the file.
    """
    from edgeq.backends.litert.parts import bias_scale

    model = schema().ModelT.InitFromPackedBuf(data, 0)
    tensors = {t.name.decode(): t for t in model.subgraphs[0].tensors}
    problems = []
    for op in program.ops.values():
        problems += _differs(tensors.get(renamed.get(op.name, op.name)), op.layer, op.output_qparams)
        if op.weight is None or op.weight_scale is None:
            continue
        weight, bias = tensors[f"{op.name}_weight"], tensors[f"{op.name}_bias"]
        stored = np.frombuffer(bytes(model.buffers[weight.buffer].data), np.int8).reshape(weight.shape)
        if not _same_weights(stored, op):
            problems.append(f"weights of {op.layer} differ")
        if not np.array_equal(weight.quantization.scale, op.weight_scale.numpy()) or np.any(
            weight.quantization.zeroPoint
        ):
            problems.append(f"weight scales of {op.layer} differ")
        integers = np.frombuffer(bytes(model.buffers[bias.buffer].data), np.int32)
        wanted = np.zeros_like(integers) if op.bias is None else op.bias.numpy()
        if not np.array_equal(integers, wanted) or not np.array_equal(bias.quantization.scale, bias_scale(op)):
            problems.append(f"bias of {op.layer} differs")
    return problems


def _same_weights(stored: Any, op: IntegerOp) -> bool:
    assert op.weight is not None
    ours = op.weight.numpy()
    if ours.ndim == 3:
        ours = ours[:, :, None]
    if ours.ndim == 2:
        return np.array_equal(stored, ours)
    if op.kind == "conv_transpose2d":
        return np.array_equal(stored, ours.transpose(1, 2, 3, 0))
    depthwise = (op.attrs.groups != 1 and ours.shape[1] == 1) or stored.shape[0] != ours.shape[0]
    return np.array_equal(stored, ours.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1)))


def _differs(tensor: Any, name: str, qparams: QParams) -> list[str]:
    if tensor is None:  # a permute writes no tensor
        return []
    same = np.float32(qparams.step) == tensor.quantization.scale[0] and qparams.zero == tensor.quantization.zeroPoint[0]
    return [] if same else [f"scale or zero point of {name} differs"]


def coverage(data: bytes, layers: Mapping[str, tuple[str, ...]]) -> tuple[OpPlacement, ...]:
    """One row for each operator of a `.tflite` file: integer where no tensor it touches is float.

    layers: node or tensor → keys of the layers that its operator computes.
    """
    s = schema()
    names = {code: text for text, code in vars(s.BuiltinOperator).items() if not text.startswith("_")}
    model = s.ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    reals = (s.TensorType.FLOAT32, s.TensorType.FLOAT16, s.TensorType.FLOAT64)
    rows = []
    for op in graph.operators:
        code = model.operatorCodes[op.opcodeIndex]
        kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        touched = [int(t) for t in (*op.inputs, *op.outputs) if t >= 0]
        name = graph.tensors[int(op.outputs[0])].name.decode()
        is_float = any(graph.tensors[t].type in reals for t in touched)
        keys = _keys(name, layers)
        shifts = {graph.tensors[t].type for t in touched} == {s.TensorType.INT8, s.TensorType.UINT8}
        if shifts and kind == "QUANTIZE":
            reason = "shifts between int8 and uint8 at the file's edge"
            rows.append(OpPlacement(name, kind, "integer", reason, inserted=True))
        elif not is_float:
            reason = "puts axes into LiteRT's order" if kind == LAYOUT and not keys else ""
            inserted = not keys and (any(layers.values()) or kind == LAYOUT)  # without labels no operator has a key
            rows.append(OpPlacement(name, kind, "integer", reason, keys, inserted=inserted))
        elif kind in BOUNDARY:
            reason = "converts between integers and float at an island's edge"
            rows.append(OpPlacement(name, kind, "float island", reason, keys, inserted=True))
        else:
            reason = "its layer is not quantized, so it computes in float32"
            rows.append(OpPlacement(name, kind, "float island", reason, keys))
    return tuple(rows)


def _keys(name: str, layers: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    return layers.get(name) or layers.get(name.rsplit("_", 1)[0], ())
