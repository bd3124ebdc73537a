"""Sensitivities: outputs as the QDQ program gives them, numbers against NumPy, what is kept, what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from networks import Attention, InvertedResidual, Neck, TwoInputs, inputs, seeded
from torch import Tensor, nn

from edgeq import api, backends
from edgeq.assembly import silent
from edgeq.calib import sensitivity
from edgeq.calib.allocate import allocate
from edgeq.calib.curvature import weighted
from edgeq.calib.recipes import recipe
from edgeq.calib.sensitivity import measure, trace
from edgeq.calib.study import Study
from edgeq.graph.annotate import default_plan
from edgeq.graph.capture import capture
from edgeq.spec import EdgeqError, QuantPlan
from edgeq.task import Task

FRAMES = 6
Change = dict[str, str]


class Classes(nn.Module):
    """Two linear layers, [1, 8] → logits [1, 5], and what else they are made to."""

    def __init__(self, end: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.end = nn.Linear(8, 6), nn.Linear(6, 5), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.second(self.first(x)))


def frames(count: int = FRAMES) -> list[tuple[Tensor, ...]]:
    return [(torch.randn(1, 8, generator=torch.Generator().manual_seed(i)),) for i in range(count)]


def study(network: nn.Module, data: Sequence[tuple[Tensor, ...]] | None = None, **options: Any) -> Study:
    given = frames() if data is None else data
    return Study(capture(network.eval(), given[0]), backends.target("simulated"), recipe("minmax"), given, **options)


def rounded(network: Classes, bits: int) -> list[np.ndarray]:
    """Outputs on the frames with the first layer's weights on a symmetric grid per channel, float64."""
    w, b = (t.detach().double().numpy() for t in (network.first.weight, network.first.bias))
    v, c = (t.detach().double().numpy() for t in (network.second.weight, network.second.bias))
    most = 2 ** (bits - 1) - 1
    scale = np.abs(w).max(1, keepdims=True) / most
    near = np.round(w / scale) * scale
    return [(x.double().numpy() @ near.T + b) @ v.T + c for (x,) in frames()]


def floats(network: Classes) -> list[np.ndarray]:
    return [network.second(network.first(x)).detach().double().numpy() for (x,) in frames()]


def softmax(y: np.ndarray) -> np.ndarray:
    e = np.exp(y - y.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


@pytest.mark.parametrize("bits", [3, 4])
def test_sqnr_and_kl_are_numpys(bits: int) -> None:
    network = Classes()
    real, made = floats(network), rounded(network, bits)
    lines = [{"first/linear": f"w{bits}"}]
    noise = sum(np.square(y - x).sum() for y, x in zip(real, made, strict=True)) / sum(np.square(y).sum() for y in real)
    assert measure("sqnr", study(network), lines) == pytest.approx([noise], rel=1e-4)
    pairs = [(softmax(y), softmax(x)) for y, x in zip(real, made, strict=True)]
    divergence = np.mean([(p * np.log(p / q)).sum() for p, q in pairs])
    assert divergence > 0
    assert measure("kl", study(network), lines) == pytest.approx([divergence], rel=1e-3)
    assert measure("kl", study(Classes(lambda y: y.softmax(1))), lines) == pytest.approx([divergence], rel=1e-3)


def test_kl_of_numbers_is_half_the_squared_error_over_their_power() -> None:
    network = Classes()
    real, made = floats(network), rounded(network, 3)
    errors = [np.square(y - x) for y, x in zip(real, made, strict=True)]
    halves = [
        sum(e[:, part].sum() for e in errors) / (2 * np.mean([np.square(y[:, part]) for y in real]))
        for part in (slice(0, 2), slice(2, 5))
    ]
    two = Classes(lambda y: (y[:, :2], y[:, 2:]))
    assert measure("kl", study(two), [{"first/linear": "w3"}]) == pytest.approx([sum(halves) / FRAMES], rel=1e-4)
    whole = sum(e.sum() for e in errors) / (2 * np.mean([np.square(y) for y in real]))
    rows = Classes(lambda y: torch.cat([y, y, y]))  # three rows for one example, so that they are no classes
    assert measure("kl", study(rows), [{"first/linear": "w3"}]) == pytest.approx([3 * whole / FRAMES], rel=1e-4)


@pytest.mark.parametrize("base", ["fp32", "w8a8"])
@pytest.mark.parametrize("changed", ["fp32", "w8a8", "w4a8", "w4", "w3a6"])
def test_outputs_are_those_of_the_program_that_quantize_makes(base: str, changed: str) -> None:
    network = seeded(InvertedResidual)
    data = [inputs(InvertedResidual, seed) for seed in range(4)]
    target = backends.target("simulated")
    whole = default_plan(capture(network, data[0]), target, "minmax").layers
    keys = [key for key, name in whole.items() if name == "w8a8" and "conv2d" in key][1:3]
    layers = whole if base == "w8a8" else dict.fromkeys(whole, "fp32")
    change = dict.fromkeys(keys, changed)
    subject = study(network, data, base=layers)
    task = Task("net", lambda: network, lambda: data[0], lambda: data)
    model = api.quantize(task, recipe="minmax", plan=QuantPlan("simulated", "minmax", {**layers, **change}))
    real = [tuple(y.detach().numpy() for y in model.float(batch)) for batch in data]
    made = [tuple(y.detach().numpy() for y in model.qdq(batch)) for batch in data]
    answered = list(subject.answers(subject.change(change)))
    got = [np.concatenate(parts) for parts in zip(*[[y.numpy() for y in ys] for _, ys in answered], strict=True)]
    wanted = [np.concatenate(parts) for parts in zip(*made, strict=True)]
    off = sum(np.square(a - b).sum() for a, b in zip(got, wanted, strict=True))
    noise = sum(np.square(a - np.concatenate(b)).sum() for a, b in zip(wanted, zip(*real, strict=True), strict=True))
    assert off <= 1e-3 * noise + 1e-12
    assert bool(noise > 1e-10) is ((base, changed) != ("fp32", "fp32"))


def test_what_changes_nothing_hurts_nothing_and_the_base_counts_off() -> None:
    network = Classes()
    for name in ("sqnr", "kl"):
        alone, lower = measure(name, study(network), [{}, {"first/linear": "w3"}])
        assert alone == 0.0 < lower
        under = study(network, base={"first/linear": "w3", "second/linear": "w3"})
        same, freed = measure(name, under, [{"first/linear": "w3"}, {"first/linear": "fp32"}])
        assert same == 0.0 > freed


def test_kept_numbers_are_not_measured_again_and_others_are() -> None:
    network, kept = Classes(), dict[str, float]()
    lines: list[Change] = [{"first/linear": "w3"}, {"second/linear": "w3"}]
    found = measure("sqnr", study(network), lines, kept=kept)
    before = dict(kept)
    told = list[tuple[str, int, int | None]]()
    again = study(network)
    again.change = lambda lines: pytest.fail("measured again")  # type: ignore[method-assign]
    assert measure("sqnr", again, lines, lambda *stage: told.append(stage), kept) == found
    assert told == [("sensitivity sqnr", 1, 2), ("sensitivity sqnr", 2, 2)]
    measure("sqnr", study(network, frames(FRAMES - 1)), lines, kept=kept)
    measure("kl", study(network), lines, kept=kept)
    measure("sqnr", study(network, base={"second/linear": "w8"}), lines, kept=kept)
    assert len(kept) == 8 and before.items() <= kept.items()


def test_memory_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    network, lines = Classes(), [{"first/linear": "w3a4"}]
    found = measure("kl", study(network), lines)
    monkeypatch.setattr("edgeq.calib.study.MEMORY", 0)
    assert measure("kl", study(network), lines) == found


def right(predict: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> Mapping[str, float]:
    """How near the first logit comes to 1, and how many answers there were."""
    answers = [predict(frame)[0] for frame in frames()]
    return {"near": -float(np.mean([abs(float(y[0, 0]) - 1) for y in answers])), "answers": float(len(answers))}


def test_metric_is_the_fall_of_what_evaluate_says() -> None:
    network = Classes()
    near = [-np.mean([abs(y[0, 0] - 1) for y in ys]) for ys in (floats(network), rounded(network, 3))]
    lines = [{"first/linear": "w3"}]
    assert measure("metric", study(network, score=right), lines) == pytest.approx([near[0] - near[1]], rel=1e-4)
    assert measure("metric", study(network, score=right, metric="answers"), lines) == [0.0]


def test_every_measure_is_named_and_a_wrong_name_lists_them() -> None:
    with pytest.raises(EdgeqError, match=r"unknown sensitivity 'hessian': use .*kl, .*metric, .*sqnr"):
        measure("hessian", study(Classes()), [])
    assert {"kl", "metric", "sqnr"} <= set(sensitivity.names())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "asks the task's evaluate\\(\\)"),
        ({"score": lambda predict: {"top1": float("nan")}}, "NaN as 'top1' before any layer"),
        ({"score": right, "metric": "top1"}, "no number called 'top1': it has near, answers"),
        ({"score": lambda predict: {}}, "no number called None: it has none"),
    ],
)
def test_a_metric_that_says_nothing_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EdgeqError, match=sentence):
        measure("metric", study(Classes(), **options), [{"first/linear": "w3"}])


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(EdgeqError, match="there are none"):
        study(Classes(), frames=0)
    with pytest.raises(EdgeqError, match="unknown layer 'frist/linear'; did you mean 'first/linear'"):
        measure("kl", study(Classes()), [{"frist/linear": "w3"}])


class Bends(nn.Module):
    """[1, 3] → logits [1, 3] by two layers of nine weights and a function between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(x)))
        return y


def small(count: int = FRAMES) -> list[tuple[Tensor, ...]]:
    return [(2 * torch.randn(1, 3, generator=torch.Generator().manual_seed(i)),) for i in range(count)]


def hessians(network: Bends, loss: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Each layer's block [9, 9] of the mean loss over the frames, by torch; loss: of float's outputs and others."""
    x = torch.cat([frame for (frame,) in small()]).double()
    net = Bends().double()
    net.load_state_dict(network.state_dict())
    real = net(x).detach()

    def of(name: str) -> Callable[[Tensor], Tensor]:
        def total(weight: Tensor) -> Tensor:
            found = torch.func.functional_call(net, {f"{name}.weight": weight}, (x,))
            assert isinstance(found, Tensor)
            return loss(real, found)

        return total

    names = ("first", "second")
    blocks = {
        name: torch.autograd.functional.hessian(of(name), net.get_submodule(name).weight.detach()) for name in names
    }
    return {f"{name}/linear": block.reshape(9, 9) for name, block in blocks.items()}


def divergence(real: Tensor, made: Tensor) -> Tensor:
    return nn.functional.kl_div(made.log_softmax(1), real.softmax(1), reduction="batchmean")


def error(weight: Tensor, bits: int) -> Tensor:
    """Q(W) − W on a symmetric grid per channel, float64."""
    w = weight.detach().double()
    scale = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (w / scale).round() * scale - w


CHANGES: list[Change] = [{"first/linear": "w3"}, {"second/linear": "w3"}, {"first/linear": "w4", "second/linear": "w3"}]


def by_layers(network: Bends, per_layer: Callable[[str, Tensor], float]) -> list[float]:
    """Each change's sum over its layers of a number of layer and rounding error."""
    layers = {"first/linear": network.first.weight, "second/linear": network.second.weight}
    return [
        sum(per_layer(key, error(layers[key], int(name[1:]))) for key, name in change.items()) for change in CHANGES
    ]


def test_eigenvalue_is_that_of_torchs_hessian() -> None:
    network = Bends()
    largest = {key: torch.linalg.eigvalsh(block)[-1].item() for key, block in hessians(network, divergence).items()}
    wanted = by_layers(network, lambda key, moved: largest[key] * float(moved.square().sum()))
    assert measure("eigenvalue", study(network, small()), CHANGES) == pytest.approx(wanted, rel=0.03)


def test_trace_and_fisher_are_those_of_torchs_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Bends()
    blocks = hessians(network, divergence)
    traces = {key: block.trace().item() for key, block in blocks.items()}
    wanted = by_layers(network, lambda key, moved: traces[key] / 9 * float(moved.square().sum()))
    assert trace.traces(study(network, small()), silent, {}, 600) == pytest.approx(traces, rel=0.08)
    monkeypatch.setattr(trace, "traces", lambda study, progress, kept: traces)
    assert measure("trace", study(network, small()), CHANGES) == pytest.approx(wanted, rel=1e-3)
    diagonals = {key: block.diagonal().reshape(3, 3) for key, block in blocks.items()}
    wanted = by_layers(network, lambda key, moved: float((diagonals[key] * moved.square()).sum()) / 2)
    monkeypatch.setattr("edgeq.calib.sensitivity.fisher.DRAWS", 600)
    assert measure("fisher", study(network, small()), CHANGES) == pytest.approx(wanted, rel=0.08)


def test_the_tasks_own_loss_is_derived_where_there_is_one() -> None:
    network = Bends()

    def loss(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Tensor:
        return (outputs[0] ** 4).mean() + inputs[0].mean()

    blocks = hessians(network, lambda real, made: (made**4).mean())
    largest = {key: torch.linalg.eigvalsh(block).abs().max().item() for key, block in blocks.items()}
    wanted = by_layers(network, lambda key, moved: largest[key] * float(moved.square().sum()))
    own = study(network, small(), hook=lambda name: loss if name == "loss" else None)
    assert measure("eigenvalue", own, CHANGES) == pytest.approx(wanted, rel=0.03)
    wrong = study(network, small(), hook=lambda name: lambda inputs, outputs: 3.0)
    with pytest.raises(EdgeqError, match="returned no finite 0-d tensor that depends on outputs"):
        measure("trace", wrong, CHANGES)


@pytest.mark.parametrize("kind", [Neck, Attention, TwoInputs])
def test_every_measure_takes_several_outputs_inputs_and_tokens(kind: type[nn.Module]) -> None:
    subject = study(seeded(kind), [inputs(kind, seed) for seed in range(2)])
    changes = [{layer.key: "w3a8"} for layer in weighted(subject)]
    for name in sensitivity.names():
        found = [] if name == "metric" else measure(name, subject, changes)
        assert all(value > 0 for value in found), name


def test_outputs_that_are_no_numbers_are_told() -> None:
    network = study(Classes(lambda y: y / (y[:, :1] > 100).float().sum()))
    for name in ("kl", "interlayer"):
        with pytest.raises(
            EdgeqError, match=f"sensitivity '{name}' of .* is nan: the network's outputs hold NaN or Inf"
        ):
            measure(name, network, [{"first/linear": "w3"}])


def test_a_hessian_of_integers_is_refused() -> None:
    with pytest.raises(EdgeqError, match="none does smoothly"):
        measure("trace", study(Classes(lambda y: y.argmax(1))), [{"first/linear": "w3"}])


def test_interlayer_adds_up_to_what_two_changes_hurt_together() -> None:
    network, kept = Classes(), dict[str, float]()
    alone = CHANGES[:2]
    (both,) = measure("kl", study(network), [{**alone[0], **alone[1]}])
    found = measure("interlayer", study(network), alone, kept=kept)
    assert sum(found) == pytest.approx(both, rel=1e-6)
    assert found != pytest.approx(measure("kl", study(network), alone), rel=1e-3)
    assert len(kept) == 4  # nothing, both alone, both together
    again = study(network)
    again.change = lambda lines: pytest.fail("measured again")  # type: ignore[method-assign]
    assert measure("interlayer", again, alone, kept=kept) == found


@pytest.mark.parametrize("name", ["kl", "sqnr", "fisher", "trace", "eigenvalue", "interlayer", "lrp"])
def test_one_and_two_threads_give_the_same_numbers(name: str) -> None:
    data = [inputs(InvertedResidual, seed) for seed in range(3)]
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        subject = study(seeded(InvertedResidual), data)
        keys = [layer.key for layer in weighted(subject)][:3]
        found.append(measure(name, subject, [{key: "w4a8"} for key in keys]))
    torch.set_num_threads(before)
    assert found[0] == found[1] and all(found[0])


@pytest.mark.parametrize("seed", range(4))
def test_allocation_is_the_best_that_fits_by_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    sizes = [
        {name: int(bits * n) for name, bits in (("w8", 8), ("w4", 4), ("w3", 3))} for n in random.integers(5, 90, 6)
    ]
    costs = [{name: float(random.exponential(2.0**-row)) for row, name in enumerate(reversed(size))} for size in sizes]
    least, most = (sum(f(size.values()) for size in sizes) for f in (min, max))
    for budget in (least, (least + most) // 2, most - 1, most):
        every = itertools.product(*sizes)
        fits = [c for c in every if sum(s[name] for s, name in zip(sizes, c, strict=True)) <= budget]
        best = min(fits, key=lambda c: sum(k[name] for k, name in zip(costs, c, strict=True)))
        assert allocate(costs, sizes, budget) == list(best)
    with pytest.raises(EdgeqError, match=f"below the smallest plan, which has {least}"):
        allocate(costs, sizes, least - 1)


def test_allocation_of_large_sizes_fits_its_budget() -> None:
    sizes = [{"w8": 1_000_003, "w4": 500_002}] * 3
    costs = [{"w8": 0.0, "w4": cost} for cost in (3.0, 1.0, 2.0)]
    assert allocate(costs, sizes, 1_500_006) == ["w4"] * 3
    assert allocate(costs, sizes, 2_001_000) == ["w8", "w4", "w4"]


def test_relevance_is_what_a_step_by_step_propagation_finds() -> None:
    """Linear, ReLU, linear, without biases: R of the hidden layer is share by share what goes to the largest logit."""
    torch.manual_seed(2)
    network = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 5, bias=False))
    w, v = (network.get_submodule(name).weight.detach().double().numpy() for name in ("0", "2"))
    scores = np.zeros(2)
    for (x,) in frames():
        y = np.maximum(x.double().numpy()[0] @ w.T, 0)
        top = int((y @ v.T).argmax())
        scores += np.abs([v[top] * y, np.eye(1, 6)[0] * (y @ v[top])]).sum(1)  # every share of z_top; z_top itself
    changes = [{"0/linear": "w3"}, {"2/linear": "w3"}]
    moved = [np.square(error(torch.from_numpy(m), 3).numpy()).sum() / np.square(m).sum() for m in (w, v)]
    assert measure("lrp", study(network), changes) == pytest.approx(list(scores / scores.sum() * moved), rel=1e-3)
