"""Values of unlike size beside each other keep their steps: against the user's own module and on every runtime."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgeq import QuantizedModel, export, quantize, verify
from edgeq.calib.recipes import RECIPES
from edgeq.calib.written import changed
from edgeq.graph.arithmetic import coreml, ideal, litert_builtin, litert_reference, litert_xnnpack, tvm, xnnpack
from edgeq.graph.integer import IntegerOp
from edgeq.spec import EdgeqWarning, QuantPlan

Batches = list[tuple[Tensor, ...]]
UNITS = torch.tensor([1.0, 1.0, 0.01, 0.01, 300.0, 1e5])  # metres, radians, rad/s, kelvin, pascal
IMAGES: Batches = [(torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(i)),) for i in range(8)]


class Heads(nn.Module):
    """Boxes in pixels and scores of one stem; `join` says what the network makes of them."""

    def __init__(self, join: Callable[[Heads, Tensor, Tensor, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.join = join
        self.stem, self.box, self.score = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.deaf, self.keen, self.tail, self.both = (nn.Conv2d(c, 5, 1) for c in (8, 8, 4, 8))
        with torch.no_grad():
            self.box.weight *= 300
            self.box.bias.fill_(320.0)  # type: ignore[union-attr] # it has a bias
            self.both.weight[:2] *= 300
            self.both.bias[:2] = 320.0  # type: ignore[index] # it has a bias
            self.keen.weight[:, :4] /= 300
            self.score.weight *= 4

    def forward(self, x: Tensor) -> object:
        y = torch.relu(self.stem(x))
        return self.join(self, y, torch.relu(self.box(y)), self.score(y))


def both(net: Heads, y: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    z = net.both(y)
    return z[:, :2], z[:, 2:].sigmoid()


JOINS: dict[str, Callable[[Heads, Tensor, Tensor, Tensor], object]] = {
    "channels": lambda n, y, b, c: torch.cat((b, c), 1),
    "last axis": lambda n, y, b, c: torch.cat((b.permute(0, 2, 3, 1), c.permute(0, 2, 3, 1)), -1),
    "stack": lambda n, y, b, c: torch.stack((b, c), 1),
    "of a concat": lambda n, y, b, c: torch.cat((torch.cat((c, b), 1), c), 1),
    "clipped behind": lambda n, y, b, c: torch.relu(torch.cat((b, c), 1)),
    "heard": lambda n, y, b, c: n.keen(torch.cat((b, c), 1)),
    "heard behind a relu": lambda n, y, b, c: n.keen(torch.relu(torch.cat((b, c), 1))),
    "heard behind a pool": lambda n, y, b, c: n.keen(torch.max_pool2d(torch.cat((b, c), 1), 2)),
    "heard behind a sum": lambda n, y, b, c: n.keen(torch.cat((b, c), 1) + y),
    "read elsewhere": lambda n, y, b, c: (n.deaf(torch.cat((b, c), 1)), n.tail(c), c),
    "moved elsewhere": lambda n, y, b, c: (
        n.deaf(torch.cat((b, c[:, :2], c[:, 2:]), 1)),
        n.tail(c.permute(0, 1, 3, 2)),
    ),
    "one convolution": lambda n, y, b, c: n.both(y),
    "one convolution, taken apart": both,
    "sum": lambda n, y, b, c: torch.cat((b, c), 1) + y,
    "largest": lambda n, y, b, c: (torch.maximum(b / 300, c), torch.minimum(b / 300, c)),
}


def slices_db(network: nn.Module, model: QuantizedModel, data: Batches) -> float:
    """The worst ratio of signal to error in any slice of any output along any axis."""
    worst = np.inf
    for index in range(len(model.outputs)):
        with torch.no_grad():
            made = [network(*batch) for batch in data]
        want = torch.stack([m[index] if isinstance(m, tuple) else m for m in made]).double()
        error = torch.stack([model.qdq(batch)[index] for batch in data]).double() - want
        for axis in range(1, want.dim()):
            others = [a for a in range(want.dim()) if a != axis]
            ratio = want.square().sum(others) / error.square().sum(others).clamp(min=1e-30)
            worst = min(worst, float(10 * ratio.log10().min()))
    return worst


def told(network: nn.Module, data: Batches, **options: object) -> tuple[QuantizedModel, str]:
    """The model, and what quantize warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = quantize(network.eval(), example_inputs=data[0], calibration=data, **options)  # type: ignore[arg-type] # as given
    return model, "; ".join(str(w.message) for w in caught if issubclass(w.category, EdgeqWarning))


@pytest.mark.parametrize("name", JOINS)
def test_no_slice_is_lost_beside_larger_ones(name: str) -> None:
    network = Heads(JOINS[name])
    model, _ = told(network, IMAGES)
    assert slices_db(network, model, IMAGES) > 18


@pytest.mark.parametrize("recipe", ["minmax", "percentile", "entropy", "dfq", "lidar-minmax"])
def test_no_recipe_loses_scores_beside_boxes(recipe: str) -> None:
    network = Heads(JOINS["channels"])
    model, _ = told(network, IMAGES, recipe=recipe)
    assert slices_db(network, model, IMAGES) > 12  # entropy clips


class Policy(nn.Module):
    """Quantities of unlike units, as sensors give them, in the last axis of one or several inputs."""

    def __init__(self, cut: Callable[[tuple[Tensor, ...]], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.first, self.second = cut, nn.Linear(6, 16), nn.Linear(16, 3)
        with torch.no_grad():
            self.first.weight /= UNITS

    def forward(self, *x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(self.cut(x))))


ENTRIES: dict[str, tuple[Callable[[tuple[Tensor, ...]], Tensor], tuple[tuple[int, ...], ...]]] = {
    "columns": (lambda x: x[0], ((1, 6),)),
    "points": (lambda x: x[0], ((2, 20, 6),)),
    "moved": (lambda x: x[0].reshape(1, 5, 6), ((1, 30),)),
    "several inputs": (lambda x: torch.cat(x, 1), ((1, 2), (1, 2), (1, 2))),
    "slices": (lambda x: torch.cat((x[0][:, :3], x[0][:, 3:]), 1), ((1, 6),)),
}


@pytest.mark.parametrize("recipe", ["default", "percentile", "dfq"])
@pytest.mark.parametrize("name", ENTRIES)
def test_an_input_of_unlike_units_stays_in_float_where_it_is_read(name: str, recipe: str) -> None:
    cut, shapes = ENTRIES[name]
    generator = torch.Generator().manual_seed(1)
    data: Batches = []
    for _ in range(32):
        whole = [torch.randn(shape, generator=generator) for shape in shapes]
        columns = np.cumsum([0, *(s[-1] for s in shapes)])
        data.append(tuple(x * UNITS.repeat(5)[a:b] for x, a, b in zip(whole, columns, columns[1:], strict=False)))
    network = Policy(cut)
    model, sentence = told(network, data, recipe=recipe)
    assert "layer 'first/linear' stays in float" in sentence and "second/linear" not in model.islands
    assert slices_db(network, model, data) > 25


@pytest.mark.parametrize("target", ["litert", "executorch", "coreml", "tvm"])
def test_every_target_keeps_them_apart(target: str) -> None:
    heads = Heads(JOINS["heard"])
    model, sentence = told(heads, IMAGES, target=target)
    assert "layer 'cat' stays in float: it joins 'score/conv2d'" in sentence and "'box/conv2d', whose" in sentence
    assert slices_db(heads, model, IMAGES) > 25
    generator = torch.Generator().manual_seed(1)
    data: Batches = [
        tuple(torch.randn(1, 2, generator=generator) * u for u in UNITS.view(3, 2).unbind()) for _ in range(32)
    ]
    policy = Policy(lambda x: torch.cat(x, 1))
    model, _ = told(policy, data, target=target)
    assert slices_db(policy, model, data) > 25


def test_what_a_plan_says_is_left_alone_and_told() -> None:
    network = Heads(JOINS["channels"])
    plan = QuantPlan("portable", "default", {"cat": "w8a8"})
    model, sentence = told(network, IMAGES, plan=plan)
    assert "cat" not in model.islands and ": lost in quantization" in sentence
    model, sentence = told(network, IMAGES)
    assert model.plan.layers["cat"] == "fp32" and "layer 'cat' stays in float: it joins 'score/conv2d'" in sentence
    again, sentence = told(network, IMAGES, plan=model.plan)
    assert again.plan == model.plan and again.qparams == model.qparams and not sentence


class Rare(nn.Module):
    """Four large values beside nine thousand, which a percentile takes for outliers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.few, self.many = nn.Conv2d(3, 4, 12), nn.Conv2d(3, 64, 1)
        with torch.no_grad():
            self.few.bias += 100  # type: ignore[operator] # it has a bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.few(x).flatten(1), self.many(x).flatten(1)), 1)


def test_values_that_a_percentile_clips_away_in_their_set_are_kept_apart() -> None:
    network = Rare().eval()
    recipe = changed(RECIPES["minmax"], ("ranges.method=percentile:99.9",))
    model, sentence = told(network, IMAGES, recipe=recipe)
    assert "layer 'cat' stays in float: it joins 'few/conv2d', which keeps" in sentence
    with torch.no_grad():
        want, got = network(*IMAGES[0]), model.qdq(IMAGES[0])[0]
    assert float((want - got)[:, :4].abs().max()) < 1.0


def requantized(model: QuantizedModel) -> list[IntegerOp]:
    """The program's operators that bring integers to other numbers."""
    return [op for op in model.integers.ops.values() if op.kind == "requantize"]


def test_a_small_tensor_read_elsewhere_keeps_its_own_scale_and_every_runtime_computes_it(tmp_path: Path) -> None:
    network = Heads(JOINS["read elsewhere"])
    model, _ = told(network, IMAGES, output=tmp_path)
    assert len(requantized(model)) == 1 and not model.islands
    for to in ("litert", "executorch", "coreml", "tvm"):
        export(tmp_path, to)
        row = verify(tmp_path, to=[to])["backends"][to]
        assert row["max_lsb"] == 0 and row["exact_share"] == 1.0, to


def rounded(x: np.ndarray) -> np.ndarray:
    return np.rint(x).astype(np.int64)


def fixed_point(x: np.ndarray, real: float, away: bool) -> np.ndarray:
    """x · real by a 31-bit mantissa and two roundings, in Python's integers (gemmlowp)."""
    fraction, shift = np.frexp(real)
    mantissa, results = int(np.floor(float(fraction) * 2**31 + 0.5)), []
    for value in x.tolist():
        product = (value << max(int(shift), 0)) * mantissa
        high = (product + (1 << 30)) >> 31 if product >= 0 else -((-product + (1 << 30) - 1) >> 31)
        down = max(-int(shift), 0)
        half = (1 << down) >> 1
        if down == 0:
            results.append(high)
        elif away and high < 0:
            results.append(-((-high + half) >> down))
        else:
            results.append((high + half) >> down)
    return np.asarray(results, np.int64)


@pytest.mark.parametrize("name", ["read elsewhere", "moved elsewhere"])
def test_every_rule_for_requantizing_is_that_of_int64(name: str) -> None:
    model, _ = told(Heads(JOINS[name]), IMAGES)
    op = requantized(model)[0]
    x = torch.arange(-128, 128, dtype=torch.int8)
    source, target = op.input_qparams[0], op.output_qparams
    steps = x.numpy().astype(np.int64) - source.zero_point[0]
    s, t = np.float32(source.scale[0]), np.float32(target.scale[0])
    low, high, zero = target.qmin, target.qmax, target.zero_point[0]
    exact = rounded(steps * (source.scale[0] / target.scale[0]))
    inverse = rounded((steps.astype(np.float32) * s) * np.float32(1.0 / target.scale[0]))
    wanted = {
        ideal: exact,
        coreml: rounded((steps.astype(np.float32) * s) / t),
        xnnpack: inverse,
        litert_reference: fixed_point(steps, float(s) / float(t), away=True),
        litert_builtin: fixed_point(steps, float(s) / float(t), away=False),
    }
    for rule, moved in wanted.items():
        seen = rule.compute(op, [x]).numpy()
        np.testing.assert_array_equal(seen, np.clip(moved + zero, low, high).astype(np.int8), rule.__name__)
    for rule in (litert_xnnpack, tvm):
        seen = rule.compute(op, [x]).numpy().astype(np.int64)
        assert np.abs(seen - np.clip(exact + zero, low, high)).max() <= 1


class Cancelling(nn.Module):
    """A sum over a LayerNorm's own axis, 0 but for float32's rounding, that a layer reads; and a difference that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.few, self.many = nn.LayerNorm(6), nn.Linear(1, 7, bias=False), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[4, 6] → [4, 7], [4, 6]."""
        y = self.norm(x)
        return self.few(y.sum(1, keepdim=True)) + self.many(x), F.avg_pool2d(y[None, None], 1)[0, 0] - y


def test_what_is_rounding_alone_gets_no_scale_of_its_own() -> None:
    torch.manual_seed(0)
    network = Cancelling().eval()
    batches = [(torch.randn(4, 6, generator=torch.Generator().manual_seed(i)),) for i in range(4)]
    model = quantize(network, example_inputs=batches[0], calibration=batches)
    with torch.no_grad():
        size = max(float(network.norm(*b).abs().max()) for b in batches)
        wanted = [network(*b)[0] for b in batches]
    assert model.qparams["sum"].step >= 16 * torch.finfo(torch.float32).eps * size * 0.99
    assert model.plan.layers["few/linear"] == "w8a8"
    found = [model.qdq(b)[0] for b in batches]
    assert float((torch.stack(wanted) - torch.stack(found)).abs().max()) < 0.05
    largest = model.read_by_outputs(batches[0])
    assert largest[1] == float(network.norm(*batches[0]).detach().abs().max())


def test_a_mean_has_no_finer_steps_than_the_integers_it_is_of() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1)).eval()
    with torch.no_grad():  # each channel's values cancel over the map, so that the mean's own range is next to nothing
        network[0].bias.zero_()
        network[0].weight -= network[0].weight.mean((2, 3), keepdim=True)
    ramp = torch.linspace(-1, 1, 8)
    batches = [(ramp.repeat(8, 1)[None, None] * (i + 1),) for i in range(3)]
    for target in ("portable", "simulated"):
        model = quantize(network, example_inputs=batches[0], calibration=batches, target=target)
        read, made = (model.qparams[key].step for key in ("0/conv2d", "1/mean"))
        assert made >= read / 36 * (1 - 1e-6)
