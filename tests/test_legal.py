"""Numbers that an operator's kernel does not take are found before a program is made of them, whichever operator it is."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import InvertedResidual, Neck, Pillars, TwoInputs, inputs, seeded
from torch import Tensor, nn

from edgeq import api, backends
from edgeq.calib.calibrate import calibrate
from edgeq.calib.recipes import RECIPES
from edgeq.graph.annotate import Annotation, annotate, default_plan
from edgeq.graph.capture import Captured, capture
from edgeq.graph.coded import Coded
from edgeq.graph.convert import convert
from edgeq.graph.legal import IllegalNumbers, check
from edgeq.graph.numbers import Resolved


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
    q = resolved.activations[root]
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
        resolved.activations[root] = dataclasses.replace(q, **changed)
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
        activations = {root: good.activations[annotation.tensors.find(root)] for root in apart.tensors.sets()}
        check(apart, Resolved(activations, good.weights))
        own = apart.tensors.find(joining.inputs[0])
        activations[own] = dataclasses.replace(activations[own], scale=(activations[own].scale[0] * 2,))
        check(apart, Resolved(activations, good.weights))  # what is requantized may have its own
        with pytest.raises(IllegalNumbers, match="wants one scale"):
            check(dataclasses.replace(apart, apart=frozenset()), Resolved(activations, good.weights))
        activations[own] = dataclasses.replace(activations[own], scale=(activations[own].scale[0] * 2**8,))
        with pytest.raises(IllegalNumbers):
            check(apart, Resolved(activations, good.weights))
