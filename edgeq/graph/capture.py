"""An nn.Module becomes one static graph at torch.export's level, normalised, with every node's layer key."""

from __future__ import annotations

import itertools
import keyword
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from edgeq.graph.normalise import normalise
from edgeq.graph.ops import aten_name, operator_name
from edgeq.graph.own import (
    arguments,
    compare,
    first_nan,
    place,
    plain,
    refuse_integers,
    refuse_random,
    run,
    settled,
    tensors,
    undisturbed,
)
from edgeq.graph.quiet import quiet
from edgeq.spec import EdgeqError, EdgeqWarning, TensorInfo

NAMED = (pytree.MappingKey, pytree.GetAttrKey)


@dataclass(frozen=True, slots=True)
class Captured:
    """A float network as one graph: flat tensors in, flat tuple of tensors out.

    module: aten operators with parameters as attributes; BatchNorm folded. example: the flat example inputs.
    keys: node name → layer key (module path, operator, ordinal), as `layer1.0.conv1/conv2d`.
    nested: the example inputs as the task gives them, by whose dictionaries batches are put in order.
    """

    module: GraphModule
    example: tuple[Tensor, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    keys: dict[str, str]
    nested: Any


def capture(model: nn.Module | ExportedProgram, example_inputs: tuple[Any, ...]) -> Captured:
    """Export `model` with static shapes and normalise the graph; the model itself stays as it was.

    example_inputs: a tuple of forward's positional arguments, (a dictionary of keyword arguments,), or (args, kwargs).
    The graph is compared with the module on them before it is handed out.

    Raises:
        EdgeqError: forward fails, torch.export refuses the network (data-dependent control flow, say), it draws random
            numbers, keeps a state or has shapes that depend on the data, or an input or output is no tensor.
    """
    network = plain(model)
    example_inputs = pytree.tree_map(plain_leaf, example_inputs)
    _check(example_inputs)
    example_inputs = pytree.tree_map_only(Tensor, _dense, example_inputs)
    with undisturbed(network):
        returned = run(network, example_inputs, "example_inputs()")
        tensors(returned)  # makes its dataclasses known
        args, kwargs = arguments(network, example_inputs)
        try:
            with quiet():
                program = torch.export.export(network, args, kwargs, strict=False)
                if _changes_in_place(program):
                    program = program.run_decompositions({})
        except EdgeqError:
            raise
        except (Exception, SystemExit) as error:
            raise EdgeqError(f"torch.export cannot capture {type(network).__name__}: {_condense(error)}") from error
        _check_program(type(network).__name__, program)
        refuse_random(network, program.graph)
        refuse_integers(network, program.graph)
        _rename_words_of_python(program)
        module = unlift(program)
        normalise(module)
        captured = _describe(module, program, example_inputs)
        compare(network, module, example_inputs, captured.example, returned, "example_inputs()")
    return captured


def confirm(model: nn.Module | ExportedProgram, captured: Captured, batch: Any) -> None:
    """Compare the graph with the user's own module on the first calibration batch, and the module with itself.

    Warns of an output of the module that is NaN or one constant there.

    Raises:
        EdgeqError: they part, the module answers differently each time, or the batch does not fit the network.
    """
    where = "calibration batch 0"
    flat = leaves_like(captured.nested, batch, where)
    if [(t.shape, t.dtype) for t in flat] != [(t.shape, t.dtype) for t in captured.example]:
        return  # calibration says which one, and what the network takes
    nested = pytree.tree_unflatten(list(flat), pytree.tree_structure(captured.nested))
    network = plain(model)
    with undisturbed(network):
        returned = run(network, nested, where)
        settled(network, nested, returned, where)
        compare(network, captured.module, nested, flat, returned, where)
    for info, made in zip(captured.outputs, tensors(returned), strict=True):
        said = ""
        if made.isnan().any():
            said = f"holds NaN, of the module itself{first_nan(captured.module, flat)}, on {where}: mend the model or that input"
        elif made.numel() > 1 and bool((made == made.flatten()[0]).all()):
            said = f"is {made.flatten()[0].item():g} everywhere on {where}, of the module itself: does it depend on its input?"
        if said:
            warnings.warn(f"output {info.name!r} {said}", EdgeqWarning, stacklevel=1)


def plain_leaf(leaf: Any) -> Any:
    """NumPy arrays as tensors, tensors on the CPU, half precision as float32: as the captured network takes them."""
    if isinstance(leaf, np.ndarray):
        leaf = torch.from_numpy(leaf)
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach().cpu()
    return leaf.float() if leaf.dtype in (torch.float16, torch.bfloat16) else leaf


def _rename_words_of_python(program: ExportedProgram) -> None:
    """`heads.class.weight` becomes `heads.class_.weight`: FX writes names into Python code, where a keyword cannot stand."""
    signature, renamed = program.graph_signature, {}
    for spec in signature.input_specs:
        if spec.target is not None and any(keyword.iskeyword(part) for part in spec.target.split(".")):
            parts = [f"{part}_" if keyword.iskeyword(part) else part for part in spec.target.split(".")]
            renamed[spec.target] = spec.target = ".".join(parts)
    for holder in (program.state_dict, program.constants):
        for old, new in renamed.items():
            if old in holder:
                holder[new] = holder.pop(old)


def _check(example_inputs: Any) -> None:
    """Raise EdgeqError where an example input is no tensor, or in double precision."""
    for path, leaf in pytree.tree_flatten_with_path(example_inputs)[0]:
        where = f"example_inputs(){pytree.keystr(path)}"
        if not isinstance(leaf, Tensor):
            kind = "None" if leaf is None else f"a {type(leaf).__name__}"
            raise EdgeqError(f"{where} is {kind}: give tensors only, and set what is fixed in model()")
        if leaf.is_floating_point() and leaf.dtype != torch.float32:
            raise EdgeqError(
                f"{where} is {leaf.dtype}, and networks are quantized from float32: convert it with .float()"
            )


def _check_program(network: str, program: ExportedProgram) -> None:
    """Raise EdgeqError where the network keeps a state, or where a shape depends on the data."""
    changed = list(program.graph_signature.buffers_to_mutate.values())
    if changed:
        raise EdgeqError(
            f"{network}: forward changes its buffer {changed[0]!r}, and an artefact keeps no state from run to run: "
            "make it an input and an output, or leave the change out"
        )
    for node in program.graph.nodes:
        values = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor)]
        if any(not isinstance(size, int) for v in values for size in v.shape):
            raise EdgeqError(
                f"torch.export cannot capture {network}: the shape of {aten_name(node)}'s result depends on the data"
                f"{place(node.meta.get('stack_trace') or '')}; make its shapes and control flow independent of the data"
            )


def unlift(program: ExportedProgram) -> GraphModule:
    """The program as a module of its own: parameters as attributes, inputs and outputs flat."""
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    module.graph.set_codegen(CodeGen())
    module._forward_pre_hooks.clear()  # export's own check of the nested inputs, which are flat from here on
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:  # one of its own, as the program's may be the user's, who trains on
                owner._parameters[name] = nn.Parameter(parameter.detach(), requires_grad=False)
    module.recompile()
    return module


def leaves_like(example: Any, given: Any, where: str) -> tuple[Any, ...]:
    """Leaves of `given` in the order of `example`'s, whose dictionaries may have their keys in another order.

    A flat sequence of as many leaves as `example` has is taken as it is.

    Raises:
        EdgeqError: `given` is nested otherwise; `where` says in the sentence what it is.
    """
    if isinstance(example, tuple) and len(example) == 1 and not isinstance(given, (tuple, list)):
        given = (given,)
    given = _without_label(example, pytree.tree_map(plain_leaf, given), where)
    flat = isinstance(given, (tuple, list)) and all(isinstance(g, Tensor) for g in given)
    if flat and len(given) == len(flatten(example)):
        return tuple(given)
    if isinstance(example, Mapping) and isinstance(given, Mapping):
        lacking = [k for k in example if k not in given]
        more = [k for k in given if k not in example]
        if lacking or more:
            found = f"lacks {lacking[0]!r}" if lacking else f"has {more[0]!r}, which example_inputs() has not"
            raise EdgeqError(
                f"{where} {found}: name its tensors as example_inputs() does ({', '.join(map(repr, example))})"
            )
        return tuple(leaf for key in example for leaf in leaves_like(example[key], given[key], where))
    if isinstance(example, (tuple, list)) and isinstance(given, (tuple, list)) and len(example) == len(given):
        return tuple(leaf for e, g in zip(example, given, strict=True) for leaf in leaves_like(e, g, where))
    nested = (tuple, list, Mapping)
    if isinstance(example, nested) or isinstance(given, nested):
        raise EdgeqError(
            f"{where} has {len(flatten(given))} tensors, nested otherwise than example_inputs(): the network takes "
            f"{len(flatten(example))}; yield tuples like example_inputs()"
        )
    return (given,)


def _without_label(example: Any, given: Any, where: str) -> Any:
    """A batch of a loader with labels, one element longer than the inputs, without the last; says so."""
    longer = isinstance(example, tuple) and isinstance(given, (tuple, list)) and len(given) == len(example) + 1
    if not longer or not all(isinstance(leaf, Tensor) for leaf in (*example, *given[:-1])):
        return given
    if any(e.dim() != g.dim() or e.dtype != g.dtype for e, g in zip(example, given, strict=False)):
        return given
    warnings.warn(
        f"{where.rstrip('0123456789').rstrip()}: its last element is taken for a label and left out, as the network takes "
        f"{len(example)} input{'s' if len(example) > 1 else ''}",
        EdgeqWarning,
        stacklevel=1,
    )
    return tuple(given[:-1])


def flatten(inputs: Any) -> tuple[Any, ...]:
    """Tensors of nested tuples, lists and dicts in torch.export's order."""
    return tuple(pytree.tree_leaves(inputs))


def _dense(tensor: Tensor) -> Tensor:
    """In the usual order of axes: export records strides, and runtimes refuse others (NumPy leaves 0 for axes of size 1)."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _describe(module: GraphModule, program: ExportedProgram, example_inputs: tuple[Any, ...]) -> Captured:
    example = tuple(t for t in flatten(example_inputs) if isinstance(t, Tensor))
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    returned = pytree.tree_leaves(module.graph.output_node().args[0])
    for index, result in enumerate(returned):
        if result is not None and not isinstance(result, Node):
            raise EdgeqError(
                f"output {index} of the network, counted from 0, is the constant {result!r}, not a tensor: return tensors "
                "only from forward"
            )
    results = [r for r in returned if r is not None]
    names = _output_names(program, [r is not None for r in returned])
    inputs = tuple(_info(n.name, n) for n in placeholders)
    outputs = tuple(_info(name, n) for name, n in zip(names, results, strict=True))
    module.graph.output_node().args = (tuple(results),)
    module.recompile()
    return Captured(module, example, inputs, outputs, layer_keys(module), example_inputs)


def layer_keys(module: GraphModule) -> dict[str, str]:
    """Node name → `module path/operator`, with `#n` from the second operator of that name in the module on."""
    seen: dict[str, int] = {}
    keys: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = str(stack[-1][0]) if stack else ""
        path = re.sub(r"@\d+$", "", path.removeprefix("L['self']").lstrip("."))
        name = operator_name(node)
        base = f"{path}/{name}" if path else name
        seen[base] = seen.get(base, 0) + 1
        keys[node.name] = base if seen[base] == 1 else f"{base}#{seen[base]}"
    return keys


def _info(name: str, node: Node) -> TensorInfo:
    tensor = node.meta["val"]
    return TensorInfo(name, tuple(int(s) for s in tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _output_names(program: ExportedProgram, kept: Sequence[bool]) -> tuple[str, ...]:
    """Keys of dictionaries, fields of dataclasses and named tuples where the network returns such; else `output_<n>`.

    No name stands twice.

    kept: for each leaf of what forward returns, whether it is a tensor.
    """
    spec = program.call_spec.out_spec
    assert spec is not None
    leaves = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))[0]
    names: list[str] = []
    for path, _ in itertools.compress(leaves, kept):
        parts = [str(p.key if isinstance(p, pytree.MappingKey) else p.name) for p in path if isinstance(p, NAMED)]
        indices = [str(p.idx) for p in path if isinstance(p, pytree.SequenceKey)]
        base = "_".join([*parts, *indices]) if parts else f"output_{len(names)}"
        name, count = base, 1
        while name in names:
            name, count = f"{base}_{count}", count + 1
        names.append(name)
    return tuple(names)


def _changes_in_place(program: ExportedProgram) -> bool:
    """Whether an operator of the program, or of a graph that one of its operators holds, writes into its argument."""
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    return any(_mutates(n) for graph in graphs for n in graph.nodes)


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _condense(error: BaseException) -> str:
    """torch.export's reason in one sentence, without its traceback and its advice to library developers."""
    text = str(error)
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    if "data-dependent" in text:
        first = "its code decides by a value that it computes (a tensor in if, while, int() or .item())"
    return f"{first.strip().rstrip('.')[:300]}{place(text)}; make its shapes and control flow independent of the data"
