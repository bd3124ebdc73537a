"""Cut a quantized model between named tensors: a part runs alone, with the whole's scales, weights and integers."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from edgeq.graph.capture import unlift
from edgeq.graph.convert import export
from edgeq.graph.integer import DEQUANTIZE, QUANTIZE, tensor_qparams
from edgeq.graph.ops import value
from edgeq.graph.package import QuantizedModel
from edgeq.spec import EdgeqError, QuantPlan, TensorInfo


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a model may be cut: the node that makes a tensor, its quantize node if it has one, and its float twin."""

    made: Node
    quantize: Node | None
    twin: Node

    def info(self, name: str) -> TensorInfo:
        tensor = value(self.made)
        dtype = str(tensor.dtype).removeprefix("torch.")
        qparams = None if self.quantize is None else tensor_qparams(self.quantize)
        return TensorInfo(name, tuple(tensor.shape), dtype, qparams)


def excerpt(
    model: QuantizedModel, inputs: Sequence[str] | None, outputs: Sequence[str] | None, name: str
) -> QuantizedModel:
    """The part of `model` that computes tensors `outputs` from tensors `inputs`, as a model called `name`.

    A tensor goes by its key in `model.qparams`, the layer that computes it, or `input x` for the network's input x,
    quantized or not. None stands for the model's own outputs, and for those of its inputs that are needed. The int8
    output of one part is, byte for byte, the int8 input of the part that begins with it. Golden inputs are what the QDQ
    program makes of the model's.

    Raises:
        EdgeqError: a key is unknown, the outputs depend on more than `inputs`, or not on one of them.
    """
    module, twin = unlift(model.program), unlift(model.twin)
    labels = {n: model.labels[n.name] for n in module.graph.nodes if n.name in model.labels}
    twin_labels = {n: model.twin_labels[n.name] for n in twin.graph.nodes if n.name in model.twin_labels}
    own = [i.name for i in model.inputs]
    places = _places(module, twin, labels, twin_labels, own)
    keys = [f"input {n}" for n in own] if inputs is None else inputs
    begin = dict(zip(_arguments(keys, own), (_find(places, key) for key in keys), strict=True))
    end = None if outputs is None else [_find(places, key) for key in outputs]

    golden = dict(zip(begin, _values(module, list(begin.values()), model.golden), strict=True))
    results = None if end is None else [_read(module, place) for place in end]
    needed = _cut(module, {a: place.made for a, place in begin.items()}, results)
    _cut(twin, {a: place.twin for a, place in begin.items()}, None if end is None else [p.twin for p in end])
    if inputs is not None:
        _check(name, needed, dict(zip(begin, inputs, strict=True)))

    begun = {place.quantize: f"input {argument}" for argument, place in begin.items()}  # they compute no layer now
    left = set(module.graph.nodes)
    qparams = {
        begun.get(place.quantize, key): tensor_qparams(place.quantize)
        for key, place in places.items()
        if place.quantize is not None and place.quantize in left
    }
    example = tuple(golden[argument] for argument in needed)
    program, program_labels = export(module, example, {n: key for n, key in labels.items() if n in left - begun.keys()})
    floats, floats_labels = export(twin, example, twin_labels)
    layers = {*program_labels.values(), *floats_labels.values()}
    plan = {key: wanted for key, wanted in model.plan.layers.items() if key in layers}
    return QuantizedModel(
        name=name,
        plan=QuantPlan(model.plan.target, model.plan.recipe, plan),
        program=program,
        twin=floats,
        inputs=tuple(begin[argument].info(argument) for argument in needed),
        outputs=model.outputs if end is None else tuple(p.info(k) for p, k in zip(end, outputs or (), strict=True)),
        qparams=qparams,
        labels=program_labels,
        twin_labels=floats_labels,
        islands={key: why for key, why in model.islands.items() if key in layers},
        golden=example,
        preprocessing=model.preprocessing if inputs is None else None,
    )


def cuts(model: QuantizedModel) -> dict[str, str]:
    """Quantize node → the key that `excerpt` knows its tensor by; none of the network's inputs."""
    module, twin = unlift(model.program), unlift(model.twin)
    labels = {n: model.labels[n.name] for n in module.graph.nodes if n.name in model.labels}
    twin_labels = {n: model.twin_labels[n.name] for n in twin.graph.nodes if n.name in model.twin_labels}
    places = _places(module, twin, labels, twin_labels, [i.name for i in model.inputs])
    given = [f"input {info.name}" for info in model.inputs]
    return {p.quantize.name: key for key, p in places.items() if p.quantize is not None and key not in given}


def _places(
    module: GraphModule,
    twin: GraphModule,
    labels: Mapping[Node, str],
    twin_labels: Mapping[Node, str],
    inputs: Sequence[str],
) -> dict[str, _Place]:
    """Tensor key → place, for the network's inputs and every quantized tensor."""
    given, floats = ([n for n in m.graph.nodes if n.op == "placeholder"] for m in (module, twin))
    places = {f"input {n}": _Place(a, None, b) for n, a, b in zip(inputs, given, floats, strict=True)}
    twins = {key: node for node, key in twin_labels.items()}
    for node in module.graph.nodes:
        if node.target is not QUANTIZE:
            continue
        made = node.args[0]
        if made in given:
            key = f"input {inputs[given.index(made)]}"
            places[key] = dataclasses.replace(places[key], quantize=node)
        elif labels.get(made) in twins:
            places[labels.get(node, labels[made])] = _Place(made, node, twins[labels[made]])
    return places


def _find(places: Mapping[str, _Place], key: str) -> _Place:
    if key not in places:
        near = difflib.get_close_matches(key, places, 3) or sorted(places)[:3]
        raise EdgeqError(f"excerpt: the model has no tensor {key!r} to cut at; there are {', '.join(map(repr, near))}")
    return places[key]


def _arguments(keys: Sequence[str], own: Sequence[str]) -> list[str]:
    """A name for each new input: the network's own, or its layer key spelled as an identifier."""
    names: list[str] = []
    for key in keys:
        name = key.removeprefix("input ")
        if name == key:
            name = "_".join(["layer"] * key[0].isdigit() + [re.sub(r"\W+", "_", key)])
            while name in names or name in own:
                name += "_"
        names.append(name)
    return names


def _values(module: GraphModule, places: Sequence[_Place], golden: Sequence[Tensor]) -> list[Tensor]:
    """What the tensors at `places` are for the model's golden inputs."""
    given = dict(zip((n for n in module.graph.nodes if n.op == "placeholder"), golden, strict=True))
    if all(place.made in given for place in places):
        return [given[place.made] for place in places]
    output = module.graph.output_node()
    results = output.args
    output.args = (tuple(p.made if p.made in given else _read(module, p) for p in places),)
    module.recompile()
    with torch.no_grad():
        values: tuple[Tensor, ...] = module(*golden)
    output.args = results
    # as an app will hand them over: in the usual order of axes, whatever the operator before left
    return [v.clone(memory_format=torch.contiguous_format) for v in values]


def _read(module: GraphModule, place: _Place) -> Node:
    """The tensor at `place` as an output: on its integer grid where it is quantized."""
    if place.quantize is None:
        return place.made
    with module.graph.inserting_after(place.quantize):
        return module.graph.call_function(DEQUANTIZE, (place.quantize, *place.quantize.args[1:]))


def _cut(module: GraphModule, begin: Mapping[str, Node], end: Sequence[Node] | None) -> list[str]:
    """Let `module` compute the nodes `end` (None: its own outputs) from new inputs in place of `begin`.

    Returns the inputs that are left, in order: those of `begin` that are needed, and others that are needed too.
    """
    graph = module.graph
    if end is not None:
        graph.output_node().args = (tuple(end),)
    with graph.inserting_before(next(iter(graph.nodes))):
        for argument, node in begin.items():
            new = graph.placeholder(argument)
            new.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(new)
    graph.eliminate_dead_code()
    places = [n for n in graph.nodes if n.op == "placeholder"]
    for node in places:
        if not node.users:
            graph.erase_node(node)
    graph.lint()
    module.recompile()
    return [str(n.target) for n in places if n.users]


def _check(name: str, needed: Sequence[str], given: Mapping[str, str]) -> None:
    missing = [argument for argument in needed if argument not in given]
    if missing:
        raise EdgeqError(f"excerpt {name}: its outputs depend on 'input {missing[0]}' too; name it among the inputs")
    idle = [key for argument, key in given.items() if argument not in needed]
    if idle:
        raise EdgeqError(f"excerpt {name}: its outputs do not depend on {idle[0]!r}; leave it out of the inputs")
