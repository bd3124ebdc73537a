"""Which range method `best-range` takes: on networks with long tails, where what clips and what does not each lose."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq import api, backends
from edgeq.calib.calibrate import calibrate
from edgeq.calib.choice import FEWEST, HELD, MARGIN_DB, SHARE, Candidate, Kept, least
from edgeq.calib.data.observation import Statistics
from edgeq.calib.ranges import method
from edgeq.calib.ranges.observe import Observer
from edgeq.calib.recipes import CANDIDATES, RECIPES
from edgeq.calib.written import changed
from edgeq.graph.annotate import annotate, default_plan
from edgeq.graph.capture import capture, unlift
from edgeq.graph.convert import convert
from edgeq.spec import EdgeqError, QParams

OTHERS = ("default", "minmax", "moving-average", "percentile", "mse", "entropy", "entropy-nonzero")
FRAMES = 24


class Branches(nn.Module):
    """Unlike branches joined: a wide one, a square, a pooled one; what comes out is bounded, or has long tails too."""

    def __init__(self, *, bounded: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.wide, self.even = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 4, 1),
        )
        self.last, self.bounded = nn.Conv2d(23, 4, 1), bounded

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.first(x))
        even = self.even(first)
        joined = torch.cat((self.wide(first), even * even, F.max_pool2d(first, 3, 1, 1), x), 1)
        if self.bounded:
            joined = F.relu6(joined)
        answer: Tensor = self.last(joined)
        return answer


def frames(first: int, *, hot: float, count: int = FRAMES) -> list[tuple[Tensor, ...]]:
    """Batches of normal values, one in 700 of which is `hot` times larger."""
    found = []
    for seed in range(first, first + count):
        random = np.random.default_rng(seed)
        x = random.standard_normal((1, 3, 24, 24))
        x = np.where(random.random(x.shape) < 1 / 700, hot * x, x)
        found.append((torch.from_numpy(x.astype(np.float32)),))
    return found


def sqnr(network: nn.Module, recipes: tuple[str, ...], *, hot: float) -> dict[str, float]:
    """Of each recipe's network beside the module itself, on inputs that calibration did not see, in dB."""
    batches, found = frames(0, hot=hot), {}
    captured, target = capture(network, batches[0]), backends.target("portable")
    for name in recipes:
        plan = default_plan(captured, target, name)
        again = partial(annotate, captured, target, plan)
        numbers = calibrate(captured, again(), RECIPES[name], batches, api.silent, again=again)
        program = unlift(convert(captured, *numbers)[0])
        signal = noise = 0.0
        with torch.no_grad():
            for (x,) in frames(1000, hot=hot, count=16):
                wanted, got = network(x).double().numpy(), program(x)[0].double().numpy()
                signal, noise = signal + float((wanted**2).sum()), noise + float(((wanted - got) ** 2).sum())
        found[name] = 10 * math.log10(signal / noise)
    return found


@pytest.mark.parametrize(("bounded", "hot", "losing"), [(True, 30.0, "minmax"), (False, 12.0, "percentile")])
def test_best_range_is_near_the_best_recipe_of_ranges_alone(bounded: bool, hot: float, losing: str) -> None:
    network = Branches(bounded=bounded).eval()
    found = sqnr(network, ("best-range", *OTHERS), hot=hot)
    best = max(found.values())
    assert found[losing] < best - 3.0, found  # else the network tells nothing
    assert found["best-range"] > best - 1.0, found


def grid(scale: float) -> QParams:
    return QParams((scale,), (0,), -128, 127)


def choice(answers: Callable[[Tensor], tuple[Tensor, ...]], *scales: float) -> str:
    """Which scale of the input is chosen for a network whose outputs are `answers` of an integer copy of it."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return answers(F.max_pool2d(x, 1))

    x = torch.linspace(-1, 1, 4096).view(1, 1, 64, 64)
    captured, target = capture(Net(), (x,)), backends.target("simulated")
    annotation = annotate(captured, target, default_plan(captured, target, "minmax"))
    keys = [root.name for root in annotation.tensors.sets()]
    candidates = {str(scale): Candidate(annotation, dict.fromkeys(keys, grid(scale))) for scale in scales}
    return least(captured, candidates, [(1.0, (x,))], api.silent)


def test_the_first_stays_unless_another_is_clearly_better() -> None:
    step = 1 / 127
    slightly = step * 10 ** ((MARGIN_DB / 2) / 20)  # errors grow with the step: 0.25 dB
    assert choice(lambda x: (x,), slightly, step) == str(slightly)
    assert choice(lambda x: (x,), 2 * step, step) == str(step)
    assert choice(lambda x: (x,), step, 2 * step, math.nan) == str(step)


def test_an_output_in_large_units_does_not_drown_another() -> None:
    def answers(x: Tensor) -> tuple[Tensor, ...]:
        return 1000 * x.clamp(-0.25, 0.25), x.relu(), x.abs().sqrt()  # clipping costs the first nothing

    assert choice(answers, 0.25 / 127, 1 / 127) == str(1 / 127)
    assert choice(lambda x: (x.clamp(-0.25, 0.25),), 1 / 127, 0.25 / 127) == str(0.25 / 127)


def test_whole_numbers_alone_leave_the_first() -> None:
    assert choice(lambda x: (x.flatten(1).argmax(1),), 1 / 127, 0.1 / 127) == str(1 / 127)


def test_outputs_keep_their_extremes_whatever_is_chosen() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.last(F.relu6(self.first(x)))
            return answer

    network, batches = Scores().eval(), frames(0, hot=30.0)
    captured, target = capture(network, batches[0]), backends.target("portable")
    annotation = annotate(captured, target, default_plan(captured, target, "best-range"))
    found = calibrate(captured, annotation, RECIPES["best-range"], batches, api.silent)[1].activations
    tensors = annotation.tensors
    given, _, last = (found[tensors.key(n)] for n in tensors.parent)
    with torch.no_grad():
        answers = torch.cat([network(*batch) for batch in batches])
        reach = max(float(x.abs().max()) for (x,) in batches)
    assert last.step * 255 >= float(answers.max() - answers.min()) * 0.999
    assert given.step * 127 < 0.6 * reach  # something that clips was chosen


@pytest.mark.parametrize("count", [1, 2, 5, 24, 100])
def test_batches_that_are_looked_at_stand_for_all(count: int) -> None:
    kept, seen = Kept(), Observer("x")
    for index in range(count):
        batch = torch.full((1, 4), 1.0 + (7 * index) % count)
        seen.update(batch, batch=index)
        kept.add(index, (batch,))
    some = kept.some([seen])
    assert sum(weight for weight, _ in some) == count
    assert len(some) == min(count, max(FEWEST, count // SHARE))
    assert some[0][0] == 1.0 and float(some[0][1][0].max()) == seen.high


def test_batches_that_are_too_many_are_thinned() -> None:
    kept, whole = Kept(), torch.zeros(1).expand(HELD // 8)  # a view: no memory
    for index in range(40):
        kept.add(index, (whole,))
    assert list(kept.batches) == list(range(0, 40, 8)) and kept.held <= HELD


def test_a_second_plan_chooses_without_a_pass() -> None:
    batches = frames(0, hot=60.0)
    captured, target = capture(Branches(bounded=True).eval(), batches[0]), backends.target("portable")
    kept, told, found = Statistics(), list[str](), []

    def progress(stage: str, done: int, total: int | None) -> None:
        told.append(stage)

    for data in (batches, []):
        annotation = annotate(captured, target, default_plan(captured, target, "best-range"))
        found.append(calibrate(captured, annotation, RECIPES["best-range"], data, progress, statistics=kept)[1])
        assert "choose ranges" in told
        told.clear()
    assert found[0].activations == found[1].activations


def test_senseless_lists_of_methods_are_refused() -> None:
    for text, words in (("minmax, magic", "unknown range method 'magic'"), ("minmax,", "unknown range method ''")):
        with pytest.raises(EdgeqError, match=words):
            changed(RECIPES["best-range"], (f"ranges.method={text}",))
    assert all(method(name) for name in CANDIDATES)
