"""The user's own module: out of its wrappers, run as it is, left as it was, and compared with the graph captured of it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from edgeq.spec import EdgeqError

CLOSE = 1e-3  # of an output's largest value; folding a BatchNorm moves a deep network's outputs by some 1e-5
WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def plain(model: nn.Module | ExportedProgram) -> nn.Module:
    """`model` without what was put around it for training, in float32 on the CPU; a copy where numbers had to change.

    Raises:
        EdgeqError: it is TorchScript, or quantized or prepared for it already, or cannot be copied.
    """
    if isinstance(model, ExportedProgram):
        made = model.module(check_guards=False)
        assert isinstance(made, nn.Module)
        return made
    while isinstance(model, WRAPPERS) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, WRAPPERS) else model._orig_mod  # type: ignore[assignment] # torch.compile's
    _refuse_quantized(model)
    tensors = [*model.parameters(), *model.buffers()]
    if all(t.device.type == "cpu" and (not t.is_floating_point() or t.dtype == torch.float32) for t in tensors):
        return model
    try:
        return copy.deepcopy(model).to(device="cpu", dtype=torch.float32)
    except Exception as error:
        raise EdgeqError(
            f"{type(model).__name__} is no float32 network on the CPU and cannot be copied to be one "
            f"({type(error).__name__}: {error}): return model.float().cpu() from model()"
        ) from error


def _refuse_quantized(model: nn.Module) -> None:
    """Raise EdgeqError where the network is no float network of Python code any more."""
    for path, module in model.named_modules():
        where, home = f"{type(model).__name__}: {path or 'the network'}", type(module).__module__
        if isinstance(module, torch.jit.ScriptModule):
            raise EdgeqError(
                f"{where} is TorchScript, which torch.export cannot read: return the module it was made from"
            )
        if home.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
            raise EdgeqError(f"{where} is quantized already ({type(module).__name__}): return the float network")
        if home.startswith(("torch.ao.quantization", "torchao.quantization")):
            trained = hasattr(module, "observer_enabled")
            if trained or hasattr(module, "calculate_qparams"):
                use = "quantization-aware training" if trained else "quantization"
                raise EdgeqError(
                    f"{where} is a {type(module).__name__}: the network was prepared for {use}, whose scales edgeq does not "
                    f"read yet; return the float network it was prepared from{', with the trained weights' * trained}"
                )
    for name, weight in model.named_parameters():
        kind = type(weight.data)
        if kind not in (Tensor, nn.Parameter):
            raise EdgeqError(
                f"{type(model).__name__}: weight {name!r} is a {kind.__name__} of {kind.__module__.split('.')[0]}, quantized "
                "already: return the float network"
            )


def arguments(model: nn.Module, nested: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of forward in `nested`: a tuple, (a dictionary by name,), or (args, kwargs)."""
    if not isinstance(nested, tuple):
        nested = (nested,)
    if len(nested) == 1 and isinstance(nested[0], Mapping) and _by_name(model, (), nested[0]):
        return (), dict(nested[0])
    both = len(nested) == 2 and isinstance(nested[0], tuple) and isinstance(nested[1], Mapping)
    if both and _by_name(model, nested[0], nested[1]):
        return nested[0], dict(nested[1])
    return nested, {}


def _by_name(model: nn.Module, args: tuple[Any, ...], named: Mapping[Any, Any]) -> bool:
    """Whether the keys of `named` are names of forward's parameters."""
    if not all(isinstance(key, str) for key in named):
        return False
    signature = inspect.signature(model.forward)
    if isinstance(model, GraphModule):  # torch.export's module takes *args and **kwargs, and knows its own inputs
        spec = getattr(model, "_in_spec", None)
        keywords = spec.child(1) if spec is not None and spec.num_children == 2 else None
        return keywords is not None and list(keywords.context or ()) == list(named)
    try:
        signature.bind(*args, **named)
    except TypeError:
        return False
    if all(key in signature.parameters for key in named):
        return True
    try:
        signature.bind(*args, named)
    except TypeError:
        return True
    return False


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """In the body every submodule is in eval mode and uncompiled; afterwards all is as it was.

    Training flags, attributes, hooks, buffers and the random numbers that come next are restored. Flags are set one by
    one, as programs of torch.export refuse eval() and adapters merge their weights in it.
    """
    modules = list(model.modules())
    kept = [(m, {k: copy.copy(v) if isinstance(v, dict) else v for k, v in vars(m).items()}) for m in modules]
    holders = [vars(m) for m in modules]
    inner = [{k: v for k, v in holder.items() if isinstance(v, dict)} for holder in holders]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    try:
        for module in modules:
            module.training = False
            if vars(module).get("_compiled_call_impl") is not None:
                module._compiled_call_impl = None
            for name, child in module._modules.items():
                if hasattr(child, "_orig_mod"):
                    module._modules[name] = child._orig_mod  # type: ignore[union-attr, assignment] # torch.compile's wrapper
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for (module, attributes), dictionaries in zip(kept, inner, strict=True):
            for name, found in dictionaries.items():  # the same dictionaries, as others may hold them
                found.clear()
                found.update(attributes[name])
            vars(module).clear()
            vars(module).update({**attributes, **dictionaries})
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def run(model: nn.Module, nested: Any, where: str) -> Any:
    """What the user's forward returns for `nested`, whose tensors it may write to.

    Raises:
        EdgeqError: forward fails; with the user's line. `where` says what the inputs are.
    """
    args, kwargs = pytree.tree_map_only(Tensor, Tensor.clone, arguments(model, nested))
    try:
        with torch.no_grad():
            return model(*args, **kwargs)
    except (Exception, SystemExit) as error:
        text = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise EdgeqError(
            f"{type(model).__name__}: its own forward fails on {where}{line_of(error)}: {type(error).__name__}: "
            f"{text.strip()[:300]}"
        ) from error


def line_of(error: BaseException) -> str:
    """` (at file:line)` of the innermost line that is neither torch's nor edgeq's; empty where there is none."""
    ours = Path(__file__).parent.parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not path.is_relative_to(ours) and "site-packages" not in path.parts:
            return f" (at {frame.filename}:{frame.lineno})"
    return ""


def tensors(returned: Any) -> list[Tensor]:
    """Tensors of what forward returned, in torch.export's order; a dataclass is made known to it first."""
    _register(returned)
    return [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)]


def _register(returned: Any) -> None:
    """Make dataclasses that forward returns known to torch.export, with their fields as names."""
    for leaf in pytree.tree_leaves(returned):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            torch.export.register_dataclass(type(leaf))
            _register(returned)
            return


def compare(model: nn.Module, graph: GraphModule, nested: Any, flat: Sequence[Tensor], wanted: Any, where: str) -> None:
    """Whether `graph` computes on `flat` what the user's module returned for `nested`, which are the same inputs.

    wanted: what the module returned. The module is undisturbed and in eval mode, as `undisturbed` has it.

    Raises:
        EdgeqError: an output parts from the module's; the first layer that does is named.
    """
    with torch.no_grad():
        got = graph(*[t.clone() for t in flat])
    expected = tensors(wanted)
    for index, (a, b) in enumerate(zip(expected, got, strict=True)):
        if not same(a, b):
            again = tensors(run(model, nested, where))
            if any(not same(x, y) for x, y in zip(expected, again, strict=True)):
                raise EdgeqError(changes(model))
            layer = _first_parting(model, graph, nested, flat, where)
            raise EdgeqError(
                f"{type(model).__name__}: output {index} of the captured graph, counted from 0, is not what the module "
                f"itself computes on {where}; they part first at {layer}"
            )


def settled(model: nn.Module, nested: Any, wanted: Any, where: str) -> None:
    """Raise EdgeqError where the user's module gives other outputs for the same inputs a second time."""
    again = tensors(run(model, nested, where))
    if any(not same(a, b) for a, b in zip(tensors(wanted), again, strict=True)):
        raise EdgeqError(changes(model))


def changes(model: nn.Module) -> str:
    """The sentence about a module that answers differently each time."""
    return (
        f"{type(model).__name__} gives other outputs each time for the same inputs: it draws random numbers or changes itself "
        "in forward; an artefact does neither, so leave that out in eval mode"
    )


def refuse_random(model: nn.Module, graph: torch.fx.Graph) -> None:
    """Raise EdgeqError where a graph draws random numbers: dropout that is always on, randn_like and their like."""
    for node in graph.nodes:
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        name = str(node.target).split(".")[1]
        schema = node.target._schema.arguments
        given = dict(zip([a.name for a in schema], node.args, strict=False)) | dict(node.kwargs)
        values = {a.name: given.get(a.name, a.default_value) for a in schema}
        if "scaled_dot_product" in name and not values.get("dropout_p"):
            continue
        if values.get("train", values.get("training", True)) is False or values.get("p") == 0:
            continue
        line = place(node.meta.get("stack_trace") or "")
        advice = "pass training=self.training to it" if "dropout" in name else "leave that out in eval mode"
        raise EdgeqError(
            f"{type(model).__name__} draws random numbers in eval mode by {name}{line}, and an artefact draws none: "
            f"{advice}"
        )


def refuse_integers(model: nn.Module, graph: torch.fx.Graph) -> None:
    """Raise EdgeqError where a graph quantizes already, as what PT2E converted or a QDQ program does."""
    for node in graph.nodes:
        name = str(node.target) if node.op == "call_function" else ""
        if name.startswith(("quantized_decomposed.", "quantized.", "torchao.")) or "fake_quantize" in name:
            raise EdgeqError(
                f"{type(model).__name__} is quantized already ({name.removesuffix('.default')}): edgeq does not read its "
                "scales yet; return the float network it was made from"
            )


def place(trace: str) -> str:
    """` (at file:line)` of the innermost line in a traceback that is not torch's: a forward's, or of what it calls."""
    found = re.findall(r'File "([^"]+)", line (\d+), in ', trace)
    own = [place for place in found if "/torch/" not in place[0] and not place[0].startswith("<")] or found
    return f" (at {own[-1][0]}:{own[-1][1]})" if own else ""


def same(a: Tensor, b: Tensor) -> bool:
    """The same up to float rounding; integers and booleans may turn over on a tie, and are not looked at."""
    if a.shape != b.shape:
        return False
    if not a.is_floating_point() or a.numel() == 0:
        return True
    a, b = a.double(), b.double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return False
    a, b = a[a.isfinite()], b[b.isfinite()]
    return not a.numel() or bool((a - b).abs().max() <= CLOSE * a.abs().max() + 1e-6)


def first_nan(graph: GraphModule, flat: Sequence[Tensor]) -> str:
    """`, first in log (at file:line)`: the first operator that makes NaN of numbers; empty where an input holds one."""
    found = ""

    class Looking(Interpreter):
        def run_node(self, n: Node) -> Any:
            nonlocal found
            made = super().run_node(n)
            leaves = [t for t in pytree.tree_leaves(made) if isinstance(t, Tensor)]
            if n.op == "call_function" and not found and any(bool(t.isnan().any()) for t in leaves):
                found = f", first in {str(n.target).split('.')[1]}{place(n.meta.get('stack_trace') or '')}"
            return made

    if not any(bool(t.isnan().any()) for t in flat):
        with torch.no_grad():
            Looking(graph).run(*[t.clone() for t in flat])
    return found


def _first_parting(model: nn.Module, graph: GraphModule, nested: Any, flat: Sequence[Tensor], where: str) -> str:
    """The layer behind the last one whose output the graph has somewhere; a folded BatchNorm's convolution has none."""
    seen: list[tuple[str, Tensor]] = []
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, out, path=path: seen.append((path, out.clone())) if isinstance(out, Tensor) else None
        )
        for path, module in model.named_modules()
        if path and not any(True for _ in module.children())
    ]
    try:
        run(model, nested, where)
    finally:
        for hook in hooks:
            hook.remove()
    values: list[Tensor] = []

    class Kept(Interpreter):
        def run_node(self, n: Node) -> Any:
            made = super().run_node(n)
            values.extend(t for t in pytree.tree_leaves(made) if isinstance(t, Tensor))
            return made

    with torch.no_grad():
        Kept(graph).run(*[t.clone() for t in flat])
    last = max((i for i, (_, out) in enumerate(seen) if any(same(out, v) for v in values)), default=-1)
    return f"{seen[last + 1][0]!r}" if last + 1 < len(seen) else "its last operators, behind every submodule"
