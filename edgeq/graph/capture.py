"""An nn.Module becomes one static graph at torch.export's level, normalised, with every node's layer key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen

from edgeq.graph.normalise import normalise
from edgeq.graph.ops import kind_of
from edgeq.graph.quiet import quiet
from edgeq.spec import EdgeqError, TensorInfo


@dataclass(frozen=True, slots=True)
class Captured:
    """A float network as one graph: flat tensors in, flat tuple of tensors out.

    module: aten operators with parameters as attributes; BatchNorm folded. example: the flat example inputs.
    keys: node name → layer key (module path, operator, ordinal), as `layer1.0.conv1/conv2d`.
    """

    module: GraphModule
    example: tuple[Tensor, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    keys: dict[str, str]


def capture(model: nn.Module, example_inputs: tuple[Any, ...]) -> Captured:
    """Export `model` with static shapes and normalise the graph; the model itself stays as it was.

    Raises:
        EdgeqError: torch.export refuses the network (data-dependent control flow, say), or an output is no tensor.
    """
    example_inputs = pytree.tree_map_only(Tensor, _dense, example_inputs)
    was_training = model.training
    model.eval()
    try:
        with quiet():
            program = torch.export.export(model, example_inputs, strict=False)
            if any(_mutates(n) for n in program.graph.nodes):
                program = program.run_decompositions({})
    except EdgeqError:
        raise
    except Exception as error:
        raise EdgeqError(f"torch.export cannot capture {type(model).__name__}: {_condense(error)}") from error
    finally:
        model.train(was_training)
    module = unlift(program)
    normalise(module)
    return _describe(module, program, example_inputs)


def unlift(program: ExportedProgram) -> GraphModule:
    """The program as a module of its own: parameters as attributes, inputs and outputs flat."""
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    module.graph.set_codegen(CodeGen())
    module._forward_pre_hooks.clear()  # export's own check of the nested inputs, which are flat from here on
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.recompile()
    return module


def flatten(inputs: Any) -> tuple[Any, ...]:
    """Tensors of nested tuples, lists and dicts in torch.export's order."""
    return tuple(pytree.tree_leaves(inputs))


def _dense(tensor: Tensor) -> Tensor:
    """In the usual order of axes: export records strides, and runtimes refuse others (NumPy leaves 0 for axes of size 1)."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _describe(module: GraphModule, program: ExportedProgram, example_inputs: tuple[Any, ...]) -> Captured:
    example = tuple(t for t in flatten(example_inputs) if isinstance(t, Tensor))
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    results = [r for r in pytree.tree_leaves(module.graph.output_node().args[0]) if r is not None]
    if any(not isinstance(r, Node) for r in results):
        raise EdgeqError("an output of the network is a constant, not a tensor: return tensors only from forward")
    names = _output_names(program, len(results))
    inputs = tuple(_info(n.name, n) for n in placeholders)
    outputs = tuple(_info(name, n) for name, n in zip(names, results, strict=True))
    module.graph.output_node().args = (tuple(results),)
    module.recompile()
    return Captured(module, example, inputs, outputs, layer_keys(module))


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
        kind = kind_of(node) or _operator(node)
        base = f"{path}/{kind}" if path else kind
        seen[base] = seen.get(base, 0) + 1
        keys[node.name] = base if seen[base] == 1 else f"{base}#{seen[base]}"
    return keys


def _operator(node: Node) -> str:
    name: str = getattr(node.target, "__name__", str(node.target))
    return name.split(".")[0]


def _info(name: str, node: Node) -> TensorInfo:
    tensor = node.meta["val"]
    return TensorInfo(name, tuple(int(s) for s in tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _output_names(program: ExportedProgram, count: int) -> tuple[str, ...]:
    """Dictionary keys where the network returns dictionaries, `output_<n>` elsewhere."""
    spec = program.call_spec.out_spec
    assert spec is not None
    leaves = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))[0]
    names = []
    for index, (path, _) in enumerate(leaves[:count]):
        parts = [str(p.key) for p in path if isinstance(p, pytree.MappingKey)]
        indices = [str(p.idx) for p in path if isinstance(p, pytree.SequenceKey)]
        names.append("_".join([*parts, *indices]) if parts else f"output_{index}")
    return tuple(names)


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _condense(error: Exception) -> str:
    """The first sentence of torch.export's reason, without its traceback and its advice to library developers."""
    text = str(error)
    user = re.search(r"(?s)(Could not guard on data-dependent expression.*?)\n", text)
    first = user[1] if user else next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    where = re.search(r'File "([^"]+)", line (\d+), in forward', text)
    place = f" (at {where[1]}:{where[2]})" if where else ""
    return f"{first.strip().rstrip('.')[:300]}{place}; make its shapes and control flow independent of the data"
