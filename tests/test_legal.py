"""Numbers that an operator's kernel does not take are found before a program is made of them, whichever operator it is."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import InvertedResidual, Neck, Pillars, TwoInputs, inputs, seeded
from torch import Tensor, nn
from torch.fx import Node

import edgeq
from edgeq import api, backends
from edgeq.calib.calibrate import calibrate
from edgeq.calib.recipes import RECIPES
from edgeq.graph.annotate import Annotation, annotate, default_plan
from edgeq.graph.capture import Captured, capture
from edgeq.graph.coded import Coded
from edgeq.graph.convert import convert
from edgeq.graph.integer import DEQUANTIZE, DEQUANTIZE_CHANNEL, QUANTIZE, IntegerProgram
from edgeq.graph.legal import IllegalNumbers, check
from edgeq.graph.numbers import Resolved
from edgeq.graph.ops import constant
from edgeq.graph.rules import Said, broken
from edgeq.spec import EdgeqError


class Fixed(nn.Module):
    """Operators whose output LiteRT's kernels fix, joined with each other and with one that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat((x.sigmoid(), x.tanh(), x.softmax(1), torch.max_pool2d(x.relu(), 3, 1, 1)), 1)


NETWORKS = (InvertedResidual, Neck, Pillars, TwoInputs, Fixed)
TARGETS = ("portable", "litert", "executorch", "coreml", "tvm")


@cache
def numbers(network: type[nn.Module], target: str) -> tuple[Captured, Annotation, Resolved]:
    example = (torch.randn(1, 3, 8, 8),) if network is Fixed else inputs(network)
    captured, chosen = capture(seeded(network), example), backends.target(target)
    annotation = annotate(captured, chosen, default_plan(captured, chosen, "minmax"))
    return captured, *calibrate(captured, annotation, RECIPES["minmax"], [example], api.silent)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("network", NETWORKS)
def test_calibrated_numbers_are_legal(network: type[nn.Module], target: str) -> None:
    _, annotation, resolved = numbers(network, target)
    assert annotation.groups
    check(annotation, resolved)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_wrong_number_is_found_and_its_layer_named(data: st.DataObject) -> None:
    captured, annotation, good = numbers(data.draw(st.sampled_from(NETWORKS)), data.draw(st.sampled_from(TARGETS)))
    group = data.draw(st.sampled_from(annotation.groups))
    resolved = good.copy()
    tensors, root = annotation.tensors, annotation.tensors.find(group.output)
    near = {g.key for g in annotation.groups if root in {tensors.find(n) for n in (g.output, *g.inputs)}}
    q = resolved.activations[root.name]
    wrongs = ["scale 0", "scale beyond float32", "zero point"]
    wrongs += ["weights"] if group.key in resolved.weights else []
    wrongs += ["fixed"] if root in tensors.fixed else []
    wrongs += ["ratio"] if group.support.ratio is not None else []
    wrong = data.draw(st.sampled_from(wrongs))
    if wrong == "weights":
        old = resolved.weights[group.key]
        codes = old.codes.clone()
        codes.view(-1)[data.draw(st.integers(0, codes.numel() - 1))] = -128  # symmetric grids end at -127
        with pytest.raises(ValueError, match="codes from -128"):
            dataclasses.replace(old, codes=codes)
        wider = dataclasses.replace(old.grid, full_range=True)
        resolved.weights[group.key], near = Coded(wider, codes, old.scale), {group.key}
    else:
        changed = {
            "scale 0": {"scale": (0.0,)},
            "scale beyond float32": {"scale": (q.scale[0] * (1 + 2**-40),)},
            "zero point": {"zero_point": (data.draw(st.sampled_from([-129, 128, 1000])),)},
            "fixed": {"scale": (q.scale[0] * 2,)},
            "ratio": {"scale": (2.0**-30,)},
        }[wrong]
        resolved.activations[root.name] = dataclasses.replace(q, **changed)
    with pytest.raises(IllegalNumbers) as caught:
        convert(captured, annotation, resolved)
    assert any(str(caught.value).startswith(f"layer {key!r}: ") for key in near), (wrong, str(caught.value), near)


def test_a_set_with_two_scales_is_found() -> None:
    for target in ("portable", "litert", "executorch"):
        captured, annotation, good = numbers(Neck, target)
        joining = next(g for g in annotation.groups if g.support.shared_scale and g.kind == "cat")
        apart = annotate(
            captured,
            backends.target(target),
            default_plan(captured, backends.target(target), "minmax"),
            apart=frozenset({(joining.key, joining.inputs[0])}),
        )
        activations = {root.name: good.activations[annotation.tensors.key(root)] for root in apart.tensors.sets()}
        check(apart, Resolved(activations, good.weights))
        own = apart.tensors.key(joining.inputs[0])
        activations[own] = dataclasses.replace(activations[own], scale=(activations[own].scale[0] * 2,))
        check(apart, Resolved(activations, good.weights))  # what is requantized may have its own
        with pytest.raises(IllegalNumbers, match="wants one scale"):
            check(dataclasses.replace(apart, apart=frozenset()), Resolved(activations, good.weights))
        activations[own] = dataclasses.replace(activations[own], scale=(activations[own].scale[0] * 2**8,))
        with pytest.raises(IllegalNumbers):
            check(apart, Resolved(activations, good.weights))


class Gated(nn.Module):
    """A layer behind a float island, and one whose bias can be moved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.nn.functional.layer_norm(self.stem(x), [6, 6]).mean((2, 3)))


def program() -> tuple[IntegerProgram, Said]:
    """A program that breaks no rule, to be changed."""
    torch.manual_seed(0)
    example = (torch.randn(1, 3, 8, 8),)
    model = edgeq.quantize(Gated().eval(), example_inputs=example, calibration=[example])
    assert broken(model.integers, model.said) is None and model.islands
    return model.integers, Said(dict(model.plan.layers), dict(model.islands), model.labels)


def argument(node: Node, at: int, new: object) -> None:
    node.args = tuple(new if i == at else a for i, a in enumerate(node.args))  # type: ignore[assignment] # plain numbers


def test_each_rule_finds_what_breaks_it() -> None:
    def first(integers: IntegerProgram, target: object) -> Node:
        return next(n for n in integers.module.graph.nodes if n.target is target)

    def scale(integers: IntegerProgram) -> None:
        argument(first(integers, QUANTIZE), 1, -1.0)

    def zero(integers: IntegerProgram) -> None:
        argument(first(integers, QUANTIZE), 2, 200)

    def storage(integers: IntegerProgram) -> None:
        argument(first(integers, QUANTIZE), 4, 1000)

    def edge(integers: IntegerProgram) -> None:
        read_as = first(integers, DEQUANTIZE)
        argument(read_as, 1, 2 * read_as.args[1])  # type: ignore[operator] # a number

    def codes(integers: IntegerProgram) -> None:
        node = first(integers, DEQUANTIZE_CHANNEL)
        constant(integers.module, node.args[0]).view(-1)[3] = -128  # type: ignore[arg-type] # a node

    def step(integers: IntegerProgram) -> None:
        node = first(integers, DEQUANTIZE_CHANNEL)
        constant(integers.module, node.args[1]).view(-1)[3] = 0.0  # type: ignore[arg-type] # a node

    def bias(integers: IntegerProgram) -> None:
        op = next(op for op in integers.ops.values() if op.bias is not None)
        op.bias[1] = 1 << 23  # type: ignore[index] # not None

    for change, wrong in {
        scale: "is no positive float32",
        zero: r"zero point 200 lies outside \[-128, 127\]",
        storage: "integers from -128 to 1000 as torch.int8",
        edge: "quantized with scale .* and read with scale",
        codes: "layer 'stem/conv2d': weights have codes from -128",
        step: "layer 'stem/conv2d': a weight's scale is not positive",
        bias: "layer 'stem/conv2d': its bias is 8388608 steps",
    }.items():
        integers, said = program()
        change(integers)
        assert re.search(wrong, broken(integers, said) or ""), (wrong, broken(integers, said))


def test_nothing_is_silently_float_or_integer(tmp_path: Path) -> None:
    integers, said = program()
    island = next(key for key in said.islands if key.endswith("layer_norm"))
    for told, wrong in (
        (
            {"islands": {k: v for k, v in said.islands.items() if k != island}, "plan": {**said.plan, island: "w8a8"}},
            "nothing says why",
        ),
        ({"plan": {**said.plan, "head/linear": "fp32"}}, "which its plan does not ask for"),
        (
            {"labels": {k: v for k, v in said.labels.items() if v != island}},
            "layer_norm computes in float and belongs to no layer",
        ),
        ({"islands": {}, "plan": {**said.plan, island: "w8"}}, "its weights are float"),
    ):
        found = broken(integers, dataclasses.replace(said, **told)) or ""
        assert wrong in found, (wrong, found)
    example = (torch.randn(1, 3, 8, 8),)
    model = edgeq.quantize(Gated().eval(), example_inputs=example, calibration=[example])
    model.plan.layers["head/linear"] = "fp32"
    model.save(tmp_path / "model")
    with pytest.raises(EdgeqError, match=r"program.pt2: layer 'head/linear': computes in integers, which"):
        edgeq.load(tmp_path / "model")
