"""Reconstruction: sums over the data against torch's convolutions, roundings against brute force, the engine's promises."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import InvertedResidual, Neck, inputs, seeded
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgeq import api, backends
from edgeq.calib import workspace
from edgeq.calib.gram import Gram, rows_of
from edgeq.calib.problem import Problem
from edgeq.calib.ranges.weights import channel_scales
from edgeq.calib.recipes import RECIPES
from edgeq.calib.solvers import adaround, solver
from edgeq.calib.spans import spans
from edgeq.calib.steps.ends import ends, with_ends
from edgeq.calib.steps.ranges import Ranges
from edgeq.calib.steps.reconstruct import Reconstruct
from edgeq.calib.steps.round import Round
from edgeq.calib.steps.scales import Scales
from edgeq.calib.twins import Numbers
from edgeq.calib.walk import Walk
from edgeq.calib.workspace import beside
from edgeq.calib.written import changed
from edgeq.graph.annotate import annotate, default_plan
from edgeq.graph.capture import capture
from edgeq.graph.coded import along, encode
from edgeq.graph.kinds import weights_of
from edgeq.graph.numbers import Resolved
from edgeq.graph.ops import constant, kind_of
from edgeq.graph.package import QuantizedModel
from edgeq.spec import CHANNEL, EdgeqError, Grid, Recipe
from edgeq.task import Task, load_task

INT4 = Grid(4, symmetric=True, tile=CHANNEL)
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small layers on two threads wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipes as they are, with a tenth of the steps."""
    for name, fewer in (("adaround", ()), ("lidar-ptq", ("reconstruct.steps=8",))):
        shorter = changed(RECIPES[name], ("round.solver=adaround:40", *fewer))
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(shorter, name=name))


# ---------------------------------------------------------------- sums over the data


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer with weights and the shape of two examples for it."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["conv2d", "conv1d", "transposed", "linear"]))
    groups, bias = draw(st.sampled_from([1, 2, 4])), draw(st.booleans())
    if kind == "linear":
        return nn.Linear(6, 5, bias=bias), (2, *draw(st.sampled_from([(), (3,)])), 6)
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding, dilation = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    if kind == "transposed":
        # of several groups, or dilated, it is captured as two layers
        padding, extra = min(padding, kernel - 1), draw(st.integers(0, stride - 1))
        return nn.ConvTranspose2d(4, 8, kernel, stride, padding, output_padding=extra, bias=bias), (2, 4, 5, 6)
    make, shape = (nn.Conv2d, (2, 4, 9, 10)) if kind == "conv2d" else (nn.Conv1d, (2, 4, 11))
    return make(4, 8, kernel, stride, padding, dilation, groups, bias), shape


@settings(deadline=None, max_examples=60)
@given(layers(), st.integers(0, 1000))
def test_the_error_on_the_sums_is_the_error_of_torch(layer: tuple[nn.Module, tuple[int, ...]], seed: int) -> None:
    module, shape = layer
    generator = torch.Generator().manual_seed(seed)
    real = torch.randn(shape, generator=generator)
    seen = real + 0.1 * torch.randn(shape, generator=generator)
    captured = capture(module.eval(), (real,))
    (node,) = [n for n in captured.module.graph.nodes if n.op == "call_function"]
    weight = constant(captured.module, node.args[1])
    axis = weights_of(kind_of(node)).axis
    bias = module.bias.detach() if isinstance(module.bias, Tensor) else None
    spread = (1,) * (real.dim() - 2) if "conv" in (kind_of(node) or "") else ()
    with torch.no_grad():
        wanted = module(real)
    bare = wanted if bias is None else wanted - bias.view(-1, *spread)
    sums = []
    for rows in rows_of(node):
        gram, every = Gram.empty(rows, weight), torch.arange(rows.cells_in(shape))
        gram.add(rows.patches(seen, every), rows.answers(bare, every), torch.ones(len(every)))
        sums.append(gram.finish())
    channels = weight.shape[0] if axis == 0 else weight.shape[1] * module.groups  # type: ignore[operator] # an int
    step = along(torch.full((channels if axis == 0 else weight.shape[1],), 0.25), axis, weight.dim())
    problem = Problem(weight, axis, encode(weight, INT4, step), sums, bias=bias is not None)
    quantized = torch.clamp(torch.round(weight / 0.25), -7, 7)
    shift = 0.1 * torch.randn(channels, generator=generator) if bias is not None else torch.zeros(channels)
    moved = {"weight": quantized * 0.25} | ({} if bias is None else {"bias": bias + shift})
    with torch.no_grad():
        answer = torch.func.functional_call(module, moved, (seen,))
    direct = (answer - wanted).square().movedim(1 if spread else -1, 0).flatten(1).sum(1)
    total = torch.zeros(channels)
    for part, rows in zip(problem.parts, problem.split(quantized), strict=True):
        layout = part.gram.rows
        each = part.error(rows * part.scale, shift[layout.channels]) * layout.cells_in(shape)
        total.index_add_(0, layout.channels.reshape(-1), each.reshape(-1))
    empty = wanted[0, 0].numel() * 2 - sum(rows.cells_in(shape) for rows in rows_of(node)) if spread else 0
    total += empty * shift.square()  # cells of a transposed convolution that no tap reaches
    np.testing.assert_allclose(total, direct, rtol=2e-3, atol=2e-3)


def problem(seed: int, rows: int, width: int, cells: int, *, bias: bool) -> tuple[Problem, Tensor, Tensor, Tensor]:
    """A linear layer's rounding problem with correlated inputs; returns it, weights, inputs and the outputs wanted."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    mix = torch.randn(width, width, generator=generator)
    seen = torch.randn(cells, width, generator=generator) @ mix + 0.5
    captured = capture(nn.Linear(width, rows), (seen,))
    (node,) = [n for n in captured.module.graph.nodes if n.op == "call_function"]
    (layout,) = rows_of(node)
    wanted = seen @ weight.T
    gram, every = Gram.empty(layout, weight), torch.arange(cells)
    gram.add(layout.patches(seen, every), layout.answers(wanted, every), torch.ones(cells))
    scales = channel_scales(weight, 0, INT4, "minmax")
    start = encode(weight, INT4, along(scales, 0, 2))
    return Problem(weight, 0, start, [gram.finish()], bias=bias), weight, seen, wanted


@pytest.mark.parametrize("bias", [False, True])
def test_adaround_comes_near_the_best_of_all_roundings(bias: bool) -> None:
    ratios, best_found = [], 0
    for seed in range(8):
        layer, weight, seen, wanted = problem(seed, 3, 8, 64, bias=bias)
        x, y, w = (t.double().numpy() for t in (seen, wanted, weight))
        s = layer.start.scale.double().numpy()
        floor = np.clip(np.floor(w / s), -7, 6)
        choices = np.array(list(itertools.product((0, 1), repeat=8)))

        def error(q: np.ndarray, row: int, x: np.ndarray = x, y: np.ndarray = y, s: np.ndarray = s) -> np.ndarray:
            difference = (q * s[row]) @ x.T - y[:, row]
            found: np.ndarray = difference.var(-1) if bias else np.square(difference).mean(-1)
            return found

        q = adaround.solve(layer, layer.start, 250).codes.numpy().astype(float)
        near = layer.start.codes.numpy().astype(float)
        for row in range(3):
            best = error(floor[row] + choices, row).min()
            mine = error(q[row], row)
            ratios.append(mine / best)
            best_found += mine <= best * (1 + 1e-6)
            assert mine <= error(near[row], row) * (1 + 1e-5)
    assert best_found >= 12, "half of the rows at the optimum of 256 roundings"
    assert np.median(ratios) < 1.2


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.booleans())
def test_no_channel_is_worse_than_where_it_started(seed: int, bias: bool) -> None:
    layer, weight, *_ = problem(seed, 5, 12, 40, bias=bias)
    start = solver("squant").solve(layer, layer.start)
    found = adaround.solve(layer, start, 40)
    learned = found.codes
    before, after = (layer.errors(layer.split(q.decode())) for q in (start, found))
    assert bool((after <= before).all())
    steps = (weight / layer.start.scale).double()
    assert bool(((learned.double() - steps).abs() <= 1.0 + 1e-5)[steps.abs() <= 7].all()), "a neighbour, never further"
    assert int(learned.abs().max()) <= 7


# ---------------------------------------------------------------- the engine


class Detector(nn.Module):
    """Stages, a residual, a transposed convolution, a concatenation, a depthwise layer and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.point, self.down = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 12, 3, 2, 1)
        self.up = nn.ConvTranspose2d(12, 8, 2, 2)
        self.score, self.box = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """[1, 3, 12, 12] → score [1, 2, 12, 12], box [1, 4, 12, 12]."""
        x = F.relu(self.stem(x))
        x = F.relu(x + self.point(F.relu(self.deep(x))))
        y = torch.cat([F.relu(self.up(F.relu(self.down(x)))), x], 1)
        return {"score": self.score(y), "box": self.box(y)}


def sparse(seed: int) -> Tensor:
    """A map of which one cell in ten is occupied, some of them far beyond the rest."""
    generator = torch.Generator().manual_seed(seed)
    occupied = torch.rand(1, 1, 12, 12, generator=generator) < 0.1
    return occupied * torch.randn(1, 3, 12, 12, generator=generator) ** 3


def best(outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor] | None:
    """The three best cells; none where a frame is empty."""
    top = outputs[0].amax(1, keepdim=True)
    if float(top.max() - top.min()) < 1e-6:
        return None
    mask = (top >= top.flatten().topk(3).values[-1]).float()
    return mask, mask


def task(frames: int = 12, **changes: object) -> Task:
    torch.manual_seed(3)
    network = Detector().eval()
    made = Task(
        "detector",
        lambda: network,
        lambda: (sparse(0),),
        lambda: [(sparse(i),) for i in range(frames)],
        hooks={"positives": best},
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type] # fields of Task


def quantized(made: Task, recipe: str, **more: object) -> QuantizedModel:
    return api.quantize(made, recipe=recipe, target="simulated", precision="w4a8", **more)  # type: ignore[arg-type] # options of quantize


def constants(model: QuantizedModel) -> dict[str, bytes]:
    return {k: v.detach().numpy().tobytes() for k, v in model.program.state_dict.items()} | {
        k: v.numpy().tobytes() for k, v in model.program.constants.items() if isinstance(v, Tensor)
    }


def error(model: QuantizedModel, seeds: range = range(100, 110)) -> float:
    """Relative squared error of all outputs on unseen frames."""
    pairs = [(model.float((sparse(i),)), model.qdq((sparse(i),))) for i in seeds]
    wrong = sum(float((a - b).square().sum()) for x, y in pairs for a, b in zip(x, y, strict=True))
    return wrong / sum(float(a.square().sum()) for x, _ in pairs for a in x)


def test_learned_roundings_beat_what_they_start_from_on_unseen_frames() -> None:
    found = {name: error(quantized(task(), name)) for name in ("minmax", "adaround", "lidar-ptq")}
    assert found["adaround"] < 0.85 * found["minmax"]
    assert found["lidar-ptq"] < 0.85 * found["minmax"]


@pytest.mark.parametrize("network", [InvertedResidual, Neck])
@pytest.mark.parametrize("span", ["layer", "block", "cross-block"])
def test_every_kind_of_span_runs_and_the_same_seed_gives_the_same_bytes(
    network: type[nn.Module], span: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (
        Ranges(), Scales(), Round("adaround:20", start="squant"),
        Reconstruct(extent=span, steps=4, batch=2, activations=True),  # type: ignore[arg-type] # a literal
    )  # fmt: skip
    monkeypatch.setitem(RECIPES, "try", Recipe("try", "", "test", steps))
    made = Task("net", lambda: seeded(network), lambda: inputs(network), lambda: [inputs(network, i) for i in range(4)])
    first, second = quantized(made, "try"), quantized(made, "try")
    assert constants(first) == constants(second)


def test_blocks_lie_between_cuts() -> None:
    captured = capture(Detector().eval(), (sparse(0),))
    target = backends.target("simulated")
    annotation = annotate(captured, target, default_plan(captured, target, "minmax"))
    numbers = Numbers(captured, annotation, Resolved())
    layers_of = {extent: [len(s.layers) for s in spans(numbers, extent)] for extent in ("layer", "block")}
    assert layers_of["layer"] == [1] * 7
    assert layers_of["block"][0] == 1 and layers_of["block"][1] == 2, "the stem alone, then the residual block"
    assert sum(layers_of["block"]) == 7


def test_first_and_last_layers_keep_eight_bits() -> None:
    captured, target = capture(Detector().eval(), (sparse(0),)), backends.target("simulated")
    outer = {"stem/conv2d", "score/conv2d", "box/conv2d"}
    assert ends(captured) == outer
    four = default_plan(captured, target, "lidar-ptq", "w4a8")
    raised = with_ends(captured, four, "w8a8").layers
    assert {k for k, name in raised.items() if name == "w8a8"} == outer
    assert with_ends(captured, four, "fp32").layers["stem/conv2d"] == "fp32"
    eight = default_plan(captured, target, "lidar-ptq", "w8a8")
    assert with_ends(captured, eight, "w4a8") == eight, "a least precision lowers nothing"
    model = quantized(task(4), "lidar-ptq")
    assert model.plan.layers["stem/conv2d"] == "w8a8" and model.plan.layers["down/conv2d"] == "w4a8"


@pytest.mark.parametrize("lacking", [range(2), range(6, 8)], ids=["first", "last"])
def test_frames_without_positives_leave_the_task_loss_its_say(lacking: range, monkeypatch: pytest.MonkeyPatch) -> None:
    # whichever frames judge, some of them must have positives, or the task-guided loss weighs nothing
    monkeypatch.setitem(RECIPES, "local", changed(RECIPES["lidar-ptq"], ("reconstruct.objectives=mse",)))
    seen = itertools.count()
    some = task(8, hooks={"positives": lambda outputs: None if next(seen) in lacking else best(outputs)})
    assert constants(quantized(some, "lidar-ptq")) != constants(quantized(task(8), "local"))


# ---------------------------------------------------------------- interruption


class Interrupt:
    """Progress that behaves like Ctrl-C when the given span is finished."""

    def __init__(self, after: int) -> None:
        self.after, self.seen = after, []

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage.startswith("reconstruct") and "→" in stage:
            self.seen.append(stage)
            if len(self.seen) == self.after:
                raise KeyboardInterrupt


@pytest.mark.parametrize("recipe", ["adaround", "lidar-ptq"])
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(recipe: str, tmp_path: Path) -> None:
    whole = quantized(task(), recipe)
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        quantized(task(), recipe, output=out, progress=Interrupt(3))
    kept = sorted(p.name for p in beside(out).iterdir())
    assert [name.split("-")[0] for name in kept] == ["span"] * 3 + ["step"] * (recipe == "lidar-ptq") + [
        "workspace.json"
    ]
    assert not out.exists()
    stamps = [(beside(out) / name).stat().st_mtime_ns for name in kept[:3]]
    with pytest.raises(KeyboardInterrupt):
        quantized(task(), recipe, output=out, progress=Interrupt(5))
    again = [(beside(out) / name).stat().st_mtime_ns for name in kept[:3]]
    assert again == stamps, "finished spans are taken, not made again"
    resumed = quantized(task(), recipe, output=out)
    assert constants(resumed) == constants(whole) and resumed.qparams == whole.qparams
    assert out.is_dir() and not beside(out).exists()


@pytest.mark.parametrize("change", [{"before": "x"}, {"after": None}, {"scales": {"x": -1.0}}, {"more": 1}], ids=str)
def test_a_span_file_that_was_changed_is_learned_again(change: dict[str, Any], tmp_path: Path) -> None:
    whole, out = quantized(task(), "adaround"), tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        quantized(task(), "adaround", output=out, progress=Interrupt(2))
    path = min(beside(out).glob("span-*"), key=lambda p: p.stat().st_mtime_ns)
    with safe_open(path, framework="pt") as file:
        said = json.loads(file.metadata()["span"]) | change
        tensors = {name: torch.zeros_like(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118  no mapping
    save_file(tensors, path, metadata={"span": json.dumps(said)})
    assert constants(quantized(task(), "adaround", output=out)) == constants(whole)


@pytest.mark.parametrize("at", [1, 3, 9, 20])
def test_what_a_span_has_before_it_ends_is_kept(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers first, then gradient steps: an interruption costs the seconds since the last of them was written."""
    monkeypatch.setattr(workspace, "EVERY", 0.0)
    whole = quantized(task(), "lidar-ptq")
    written, out, save = itertools.count(1), tmp_path / "model", workspace.Part._save

    def interrupted(part: workspace.Part) -> None:
        save(part)
        if next(written) == at:
            raise KeyboardInterrupt

    steps = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(workspace.Part, "_save", interrupted)
        quantized(task(), "lidar-ptq", output=out)
    with monkeypatch.context() as patch:
        patch.setattr(workspace.Part, "_save", lambda part: (steps.append(part.step), save(part)))
        resumed = quantized(task(), "lidar-ptq", output=out)
    everything = [0]
    with monkeypatch.context() as patch:
        patch.setattr(workspace.Part, "_save", lambda part: (everything.append(part.step), save(part)))
        quantized(task(), "lidar-ptq", output=tmp_path / "other")
    assert len(steps) == len(everything) - 1 - at, "what was written is not learned again"
    assert constants(resumed) == constants(whole) and resumed.qparams == whole.qparams
    assert not beside(out).exists()


def test_other_data_or_another_recipe_starts_afresh(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        quantized(task(), "adaround", output=out, progress=Interrupt(2))
    progress = Interrupt(99)
    other = quantized(task(frames=9), "adaround", output=out, progress=progress)
    assert constants(other) == constants(quantized(task(frames=9), "adaround"))


@pytest.mark.parametrize("recipe", ["adaround", "lidar-ptq"])
def test_another_precision_of_the_last_layer_leaves_the_spans_before_it(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learned under one plan serves another as far as it goes; the result is the other plan's own."""
    learned, span = list[str](), Walk._span
    monkeypatch.setattr(Walk, "_span", lambda walk, s, part: (learned.append(s.name), span(walk, s, part))[1])
    first = quantized(task(), recipe, output=tmp_path / "first")
    names, last = list(learned), [key for key, name in first.plan.layers.items() if name != "fp32"][-1]
    other = dataclasses.replace(first.plan, layers={**first.plan.layers, last: "fp32"})
    whole = api.quantize(task(), plan=other)
    out = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt):
        quantized(task(), recipe, output=out, progress=Interrupt(len(names) - 1))
    learned.clear()
    resumed = api.quantize(task(), plan=other, output=out)
    assert constants(resumed) == constants(whole) and resumed.qparams == whole.qparams
    assert len(names) > 3 and len(learned) <= 2, (names, learned)


def test_a_run_goes_on_behind_the_step_that_was_finished(tmp_path: Path) -> None:
    """The search over scales is not made again where the spans behind it were interrupted, but where its file is damaged."""
    whole, out, searched = quantized(task(), "lidar-ptq"), tmp_path / "model", list[int]()

    def interrupted(stage: str, done: int, total: int | None) -> None:
        if stage == "grid search":
            searched.append(done)
        if stage.startswith("reconstruct"):
            raise KeyboardInterrupt

    for damaged, times in ((False, 1), (False, 1), (True, 2)):
        for step in beside(out).glob("step-*") if damaged else ():
            step.write_bytes(step.read_bytes()[:100])
        with pytest.raises(KeyboardInterrupt):
            quantized(task(), "lidar-ptq", output=out, progress=interrupted)
        assert searched.count(1) == times
    assert constants(quantized(task(), "lidar-ptq", output=out)) == constants(whole)


def test_a_strangers_folder_is_left_alone(tmp_path: Path) -> None:
    stranger = tmp_path / "model.partial"
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("mine")
    with pytest.raises(EdgeqError, match=r"model\.partial: holds other files"):
        quantized(task(), "adaround", output=tmp_path / "model")
    assert (stranger / "thesis.txt").read_text() == "mine"


# ---------------------------------------------------------------- real weights


@pytest.mark.data
def test_resnet20_keeps_its_accuracy_at_four_bits(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # nearest loses 4 points over 3,000 images, adaround 0.1: on 1,000 the spread of a difference is about 0.6 points
    monkeypatch.setenv("EDGEQ_LIMIT", "1000")
    made = load_task(EXAMPLES / "resnet20_cifar10.py")
    assert made.calibration is not None and made.evaluate is not None
    frames = list(itertools.islice(made.calibration(), 0, 256, 4))
    model = quantized(dataclasses.replace(made, calibration=lambda: frames), "adaround")
    real, low = (made.evaluate(lambda *x, run=run: run(x))["top1"] for run in (model.float, model.qdq))
    assert low >= real - 0.02


def test_a_layer_that_answers_nothing_teaches_nothing() -> None:
    """Its scale is next to 0, and a gradient of it no number: what was there stays."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    module, batches = nn.Sequential(*layers).eval(), [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    with torch.no_grad():
        layers[2].weight.zero_()  # type: ignore[operator] # a parameter
        layers[2].bias.zero_()  # type: ignore[operator] # a parameter
    hooks = {"positives": lambda outputs: [torch.ones_like(y) for y in outputs]}
    task = Task("nothing", lambda: module, lambda: batches[0], lambda: batches, hooks=hooks)
    model = api.quantize(task, target="simulated", recipe="lidar-ptq", settings=("reconstruct.steps=4",))
    wanted = module(*batches[0]).detach()
    assert torch.allclose(model.qdq(batches[0])[0], wanted, atol=float(wanted.abs().max()) / 50)
