"""Objectives of reconstruction and the grid search around max-min: what counts, what is skipped, what is never clipped."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq import api, backends
from edgeq.calib.cache import Cache
from edgeq.calib.calibrate import calibrate
from edgeq.calib.cells import cell_mass, relative_error
from edgeq.calib.objectives.tgpl import Positives, TaskLoss
from edgeq.calib.recipes import RECIPES
from edgeq.calib.steps.search import Search
from edgeq.calib.written import changed
from edgeq.graph.annotate import annotate, default_plan
from edgeq.graph.capture import capture
from edgeq.spec import EdgeqError, QParams, Recipe
from edgeq.task import Task


class Named(nn.Module):
    """Outputs called as in a detector."""

    def forward(self, score: Tensor, box: Tensor) -> dict[str, Tensor]:
        """What it gets, doubled."""
        return {"score": score + score, "box": box + box}


def guided(positives: object) -> TaskLoss:
    """The task-guided loss of a task with these positives."""
    made = TaskLoss()
    captured = capture(Named(), (torch.ones(1, 1, 2, 2), torch.ones(1, 4, 2, 2)))
    made.prepare(captured, {"positives": cast("Positives", positives)}.get)
    return made


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small layers on two threads wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe as it is, with fewer steps."""
    fewer = changed(RECIPES["lidar-ptq"], ("round.solver=adaround:10", "reconstruct.steps=4"))
    monkeypatch.setitem(RECIPES, "lidar-ptq", dataclasses.replace(fewer, name="lidar-ptq"))


def marked(outputs: tuple[Tensor, ...]) -> tuple[Tensor, None] | None:
    """Cells whose score is above 1; the boxes do not count."""
    mask = (outputs[0] > 1).float()
    return (mask, None) if bool(mask.any()) else None


def test_only_positives_move_the_task_loss(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    frames = [tuple(torch.randn(1, c, 6, 6, generator=generator) for c in (1, 4)) for _ in range(3)]
    loss, cache = guided(lambda outputs: ((outputs[0] > 1).float(),) * 2), Cache(tmp_path)
    masks = [loss.see(cache, i, frame) for i, frame in enumerate(frames)]
    found = [torch.randn(1, c, 6, 6, generator=generator, requires_grad=True) for c in (1, 4)]
    total = loss.difference(cache, dict(enumerate(found)), 1, 2)
    total.backward()  # type: ignore[no-untyped-call] # torch's
    wanted = 0.0
    for i, output in enumerate(found):
        assert output.grad is not None and bool((output.grad[masks[1][i] == 0] == 0).all())
        assert bool((output.grad[masks[1][i] > 0] != 0).all())
        size = sum(float((m[i] * f[i].square()).sum()) for m, f in zip(masks, frames, strict=True)) / 3
        wanted += float((masks[1][i] * (output - frames[1][i]).square()).sum()) / size / 2
    assert np.isclose(float(total), wanted, rtol=1e-5)


def test_frames_without_positives_are_counted_and_an_output_may_be_left_out(tmp_path: Path) -> None:
    loss, cache = guided(marked), Cache(tmp_path)
    for i, top in enumerate((2.0, 0.5, 3.0)):
        loss.see(cache, i, (torch.full((1, 1, 2, 2), top), torch.ones(1, 4, 2, 2)))
    assert loss.frames == [0, 2]
    box = torch.zeros(1, 4, 2, 2, requires_grad=True)
    assert float(loss.difference(cache, {0: torch.full((1, 1, 2, 2), 2.0), 1: box}, 0, 1)) == 0.0


@pytest.mark.parametrize(
    "given, sentence",
    [
        ((torch.ones(1, 1, 2, 2),), r"one mask or None for each of the 2 outputs \(score, box\).*returned 1 of them"),
        ("yes", "returned a str"),
        ((torch.ones(1, 3, 2, 2), None), r"mask of output 'score' has shape \(1, 3, 2, 2\)"),
        (("yes", None), "mask of output 'score' is a str"),
    ],
)
def test_masks_that_do_not_fit_are_refused_in_a_sentence(given: object, sentence: str, tmp_path: Path) -> None:
    loss = guided(lambda outputs: given)
    with pytest.raises(EdgeqError, match=sentence):
        loss.see(Cache(tmp_path), 0, (torch.ones(1, 1, 2, 2), torch.ones(1, 4, 2, 2)))


class Sparse(nn.Module):
    """One layer that averages and one that reads its sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(4, 6, 3, 1, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[1, 4, 16, 16] → [1, 2, 16, 16]."""
        return self.second(F.relu(self.first(x)))


def heavy(seed: int) -> Tensor:
    """95 % zeros, small values, and in each frame one a hundred times as large."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(1, 1, 16, 16, generator=generator) < 0.05) * torch.rand(1, 4, 16, 16, generator=generator)
    x[0, seed % 4, 3, 5] = 1.6 if seed % 4 else 2.0
    return x


def input_grid(least: float | None) -> QParams:
    """Numbers of the input by max-min, or searched from a share `least` on."""
    captured, target = capture(Sparse().eval(), (heavy(0),)), backends.target("simulated")
    annotation = annotate(captured, target, default_plan(captured, target, "minmax", "w8a4"))
    ranges, *others = RECIPES["minmax"].steps
    searched = () if least is None else (Search(least),)
    recipe = Recipe("try", "", "test", (ranges, others[0], *searched, others[1]))
    _, resolved = calibrate(captured, annotation, recipe, [(heavy(i),) for i in range(12)], api.silent)
    (node,) = [n for n in captured.module.graph.nodes if n.op == "placeholder"]
    return resolved.activations[annotation.tensors.key(node)]


def test_the_grid_search_finds_less_error_than_max_min_and_does_not_clip_where_told() -> None:
    network, errors = Sparse().eval(), {}
    for name in (None, 0.3):
        q = input_grid(name)
        total = 0.0
        for i in range(12):
            x = heavy(i)
            kept = (
                torch.clamp(torch.round(x / q.scale[0]) + q.zero_point[0], q.qmin, q.qmax) - q.zero_point[0]
            ) * q.scale[0]
            with torch.no_grad():
                answers = [F.relu(network.first(v)) for v in (x, kept)]
            error, power = relative_error(answers[1], answers[0], cell_mass(answers[0], 0.0))
            total += float(error / power)
        errors[name] = total
    assert errors[0.3] < 0.95 * errors[None]
    whole, free = input_grid(None), input_grid(1.0)
    assert free.scale[0] >= whole.scale[0] * (1 - 1e-6), "from 1 upwards nothing is clipped"
    assert input_grid(0.3).scale[0] < whole.scale[0]


@pytest.mark.parametrize("least", [-0.1, 1.2])
def test_a_share_beyond_sense_is_refused(least: float) -> None:
    with pytest.raises(EdgeqError, match="a share above 0 and up to 1"):
        Search(least)


def test_empty_cells_weigh_as_much_as_the_occupied_at_most() -> None:
    output = torch.full((1, 3, 10, 10), 0.7)  # what a layer with a bias answers to nothing
    output[0, :, 2, 3:7] += 1.0
    mass = cell_mass(output, 0.1)
    assert mass.shape == (1, 10, 10) and bool((mass[0, 2, 3:7] == 1).all())
    assert np.isclose(float(mass.sum()), 8.0) and float(mass.min()) > 0
    dense = cell_mass(torch.randn(1, 3, 10, 10), 0.01)
    assert bool((dense == 1).all()), "an image has no empty cells"


def detector(positives: object) -> Task:
    network = Sparse().eval()
    return Task(
        "sparse", lambda: network, lambda: (heavy(0),), lambda: [(heavy(i),) for i in range(4)],
        hooks={"positives": positives},
    )  # fmt: skip


def test_the_task_guided_recipe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EdgeqError, match=r"add positives\(outputs\) to the task file"):
        api.quantize(detector(None), recipe="lidar-ptq", target="simulated")
    with pytest.raises(EdgeqError, match="marks nothing in any of the 4 calibration batches"):
        api.quantize(detector(lambda outputs: None), recipe="lidar-ptq", target="simulated")
    with pytest.raises(EdgeqError, match="positives is no function"):
        api.quantize(detector(3), recipe="lidar-ptq", target="simulated")
    with pytest.raises(EdgeqError, match=r"positives\(\) failed: ZeroDivisionError"):
        api.quantize(detector(lambda outputs: 1 // 0), recipe="lidar-ptq", target="simulated")


def test_how_many_frames_guide_nothing_is_told() -> None:
    stages: list[tuple[str, int, int | None]] = []
    seen = iter(range(4))

    def some(outputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        return (torch.ones_like(outputs[0]),) if next(seen) else None

    api.quantize(detector(some), recipe="lidar-ptq", target="simulated", progress=lambda *stage: stages.append(stage))
    assert ("positives: 1 of 4 batches have none and guide nothing", 3, 4) in stages
    assert sum("→" in stage for stage, _, _ in stages) == 2, "one line a layer: its error before and after"
