"""Statistics kept for a second plan: no pass over the data, and the same numbers as a calibration of its own gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from networks import InvertedResidual, Neck, inputs, seeded
from torch import Tensor, nn

from edgeq import api, backends
from edgeq.calib.calibrate import calibrate
from edgeq.calib.data.observation import Statistics
from edgeq.calib.recipes import recipe
from edgeq.calib.solvers import squant
from edgeq.graph.annotate import annotate, default_plan, in_float
from edgeq.graph.capture import capture
from edgeq.graph.numbers import Resolved


class Batches:
    """Batches that are counted as they are taken."""

    def __init__(self, network: type[nn.Module]) -> None:
        self.network, self.taken = network, 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for seed in range(5):
            self.taken += 1
            yield inputs(self.network, seed)


def same(a: Resolved, b: Resolved) -> bool:
    """Whether two calibrations of one graph chose the same numbers."""
    return a.activations == b.activations and all(
        torch.equal(x.codes, b.weights[key].codes) and torch.equal(x.scale, b.weights[key].scale)
        for key, x in a.weights.items()
    )


@pytest.mark.parametrize("network", [InvertedResidual, Neck])
def test_a_second_plan_takes_no_batch_and_gets_the_same_numbers(network: type[nn.Module]) -> None:
    captured, target = capture(seeded(network), inputs(network)), backends.target("simulated")
    batches, kept = Batches(network), Statistics()
    whole = default_plan(captured, target, "mse")
    first = next(key for key in whole.layers if "conv2d" in key)
    plans = [whole, in_float(whole, [first]), default_plan(captured, target, "mse", "w4a4"), whole]
    taken = []
    for plan in plans:
        for name in ("mse", "default"):  # histograms first, which serve both
            annotation = annotate(captured, target, plan)
            _, resolved = calibrate(captured, annotation, recipe(name), batches, api.silent, statistics=kept)
            taken.append(batches.taken)
            _, alone = calibrate(captured, annotation, recipe(name), Batches(network), api.silent)
            assert same(resolved, alone), (plan.layers, name)
    assert set(taken) == {5}, "one pass for eight calibrations"


def test_a_second_plan_rounds_what_is_new_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded, solve = list[int](), squant.solve
    monkeypatch.setattr(squant, "solve", lambda p, start: (rounded.append(start.codes.numel()), solve(p, start))[1])
    captured, target, kept = capture(seeded(Neck), inputs(Neck)), backends.target("simulated"), Statistics()
    layers, counts = default_plan(captured, target, "default"), list[int]()
    weighted = next(key for key in layers.layers if "conv2d" in key)
    four = dataclasses.replace(layers, layers={**layers.layers, weighted: "w4a8"})
    for plan in (layers, layers, four, layers):
        annotation = annotate(captured, target, plan)
        rounded.clear()
        _, resolved = calibrate(captured, annotation, recipe("default"), Batches(Neck), api.silent, statistics=kept)
        counts.append(len(rounded))
        _, alone = calibrate(captured, annotation, recipe("default"), Batches(Neck), api.silent)
        assert same(resolved, alone)
    assert counts[0] > 1 and counts[1:] == [0, 1, 0]


def test_what_was_not_seen_costs_a_pass() -> None:
    captured, target = capture(seeded(Neck), inputs(Neck)), backends.target("simulated")
    batches, kept = Batches(Neck), Statistics()
    annotation = annotate(captured, target, default_plan(captured, target, "minmax"))
    for name, passes in (("minmax", 1), ("minmax", 1), ("percentile", 2), ("entropy", 2), ("minmax", 2)):
        calibrate(captured, annotation, recipe(name), batches, api.silent, statistics=kept)
        assert batches.taken == 5 * passes, name
