"""Equalisation leaves the network's answers as they were; bias correction takes a known error away; grids are kept."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Neck, inputs, seeded
from torch import Tensor, nn

from edgeq import api, backends
from edgeq.calib.calibrate import calibrate
from edgeq.calib.floats import Floats
from edgeq.calib.ranges.weights import channel_scales
from edgeq.calib.recipes import RECIPES
from edgeq.calib.steps.ends import with_ends
from edgeq.calib.steps.equalise import Channels, Lane, columns, equalise, reshaped
from edgeq.graph.annotate import Annotation, annotate, default_plan
from edgeq.graph.capture import Captured, capture
from edgeq.graph.ops import kind_of
from edgeq.spec import CHANNEL, EdgeqError, Grid
from edgeq.task import Task

WEIGHT = Grid(8, symmetric=True, tile=CHANNEL)


def uneven(network: nn.Module, seed: int = 0) -> nn.Module:
    """`network` with weights whose output channels differ in size by up to a thousand."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            axis = 1 if isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1 else 0
            shape = [1] * layer.weight.dim()
            shape[axis] = -1
            factor = 10 ** (3 * torch.rand(layer.weight.shape[axis], generator=generator) - 1.5)
            with torch.no_grad():
                layer.weight.mul_(factor.view(shape))
                if layer.bias is not None:
                    layer.bias.uniform_(-0.5, 0.5, generator=generator)
    return network.eval()


class Everything(nn.Module):
    """Every way in which a channel travels: shortcut, concat, pool, gather, permute, flatten, groups, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.stem = nn.Linear(5, 8), nn.Conv2d(8, 12, 3, padding=1)
        self.a, self.b = nn.Conv2d(12, 12, 3, padding=1, groups=3), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.down, self.up = nn.Conv2d(12, 16, 3, 2, 1), nn.ConvTranspose2d(16, 6, 2, 2)
        self.capped, self.join = nn.Conv2d(18, 6, 1), nn.Conv2d(6, 4, 1)
        self.flat = nn.Linear(18 * 4, 7)
        self.wide = nn.Linear(8 * 4, 3)

    def forward(self, points: Tensor, table: Tensor) -> dict[str, Tensor]:
        rows = F.relu(self.rows(points))
        taken = F.pad(rows, (0, 0, 0, 1)).index_select(0, table)
        image = taken.view(1, 8, 8, 8).permute(0, 3, 1, 2)
        x = F.relu(self.stem(image))
        x = F.relu(x + self.b(F.relu(self.a(x))))
        y = torch.cat([F.relu(self.up(F.relu(self.down(x)))), x], 1)
        small = F.avg_pool2d(F.max_pool2d(y, 2), 2)
        return {
            "map": self.join(F.relu6(self.capped(y))),
            "flat": self.flat(small.flatten(1)),
            "wide": self.wide(taken.view(16, 32)),
        }


def everything_inputs(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(20, 5, generator=generator), torch.randint(0, 21, (64,), generator=generator)


def captured_everything(precision: str = "w8a4") -> tuple[Captured, nn.Module, Annotation]:
    network = uneven(Everything())
    captured = capture(network, everything_inputs(0))
    target = backends.target("simulated")
    return captured, network, annotate(captured, target, default_plan(captured, target, "minmax", precision))


@pytest.mark.parametrize("precision", ["w8a4", "w8a8", "w4a8"])
def test_the_function_stays_and_the_module_too(precision: str) -> None:
    captured, network, annotation = captured_everything(precision)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    moved = equalise(captured, annotation, [everything_inputs(i) for i in range(3)], api.silent)
    assert moved > 40, "rows, stem, down, up, the grouped layers: nearly every channel has a factor"
    exact = copy.deepcopy(network).double()
    for i in range(3, 6):
        points, table = everything_inputs(i)
        wanted = exact(points.double(), table)
        found = captured.module(*everything_inputs(i))
        for a, b in zip(found, wanted.values(), strict=True):
            assert float((a - b).abs().max()) < 1e-4 * float(b.abs().max())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_channels_of_a_tensor_reach_alike() -> None:
    captured, _, annotation = captured_everything("w8a4")
    frames = [everything_inputs(i) for i in range(3)]

    def spread() -> dict[str, float]:
        """Largest over median channel extreme of each map that a layer reads, dead channels left out."""
        found: dict[str, list[Tensor]] = {}
        for frame in frames:
            for node, seen in Floats(captured).walk(frame):
                if kind_of(node) in ("relu", "cat") and seen.dim() == 4:
                    found.setdefault(node.name, []).append(seen.abs().amax((0, 2, 3)))
        most = {k: torch.stack(v).amax(0) for k, v in found.items()}
        return {k: float(v.max() / v[v > 0].median()) for k, v in most.items()}

    before = spread()
    equalise(captured, annotation, frames, api.silent)
    after = spread()
    assert max(before.values()) > 8
    assert sum(after.values()) < 0.5 * sum(before.values())


def test_clips_outputs_and_unknown_operators_keep_their_size() -> None:
    captured, _, _ = captured_everything()
    channels = Channels(captured)
    fixed = {n.name for n, lane in channels.lanes.items() if not bool(channels.roots(lane).any())}
    capped = next(n for n in captured.module.graph.nodes if captured.keys.get(n.name) == "capped/conv2d")
    answers = captured.module.graph.output_node().args[0]
    assert capped.name in fixed, "ReLU6 clips at a fixed value"
    assert {n.name for n in answers} <= fixed  # type: ignore[union-attr] # a tuple of nodes


@given(st.sampled_from([((2, 6, 4), 1), ((2, 6), 1), ((3, 4, 2, 2), 1), ((8, 6), 1), ((1, 3, 2, 5), 3)]), st.data())
def test_a_reshape_is_followed_as_the_values_go(shaped: tuple[tuple[int, ...], int], data: st.DataObject) -> None:
    shape, axis = shaped
    numbers = torch.arange(shape[axis]).view([-1 if a == axis else 1 for a in range(len(shape))]).expand(shape)
    total = numbers.numel()
    parts, rest = [], total
    while rest > 1 and len(parts) < 4:
        part = data.draw(st.sampled_from([d for d in range(1, rest + 1) if rest % d == 0]))
        parts.append(part)
        rest //= part
    after = torch.Size([*parts, rest])
    moved = numbers.reshape(after)
    lane = reshaped(Lane(axis, torch.arange(shape[axis])), torch.Size(shape), after)
    if lane is None:
        return
    along = lane.channels.view([-1 if a == lane.axis else 1 for a in range(len(after))]).expand(after)
    assert torch.equal(moved, along)


def test_reshapes_that_matter_are_followed() -> None:
    rows = Lane(1, torch.arange(6))
    assert reshaped(rows, torch.Size((64, 6)), torch.Size((1, 8, 8, 6))) is not None, "rows to an image"
    wide = reshaped(rows, torch.Size((54, 6)), torch.Size((2, 27 * 6)))
    assert wide is not None and wide.channels.tolist() == list(range(6)) * 27, "taps of a sparse convolution"
    flat = reshaped(rows, torch.Size((1, 6, 2, 2)), torch.Size((1, 24)))
    assert flat is not None and flat.channels.tolist() == np.repeat(range(6), 4).tolist()
    assert reshaped(rows, torch.Size((1, 6, 4)), torch.Size((1, 3, 8))) is None, "two channels in one place"


def test_columns_are_what_each_input_channel_meets() -> None:
    captured, network, _ = captured_everything()
    for node in captured.module.graph.nodes:
        if captured.keys.get(node.name) == "a/conv2d":
            weight = network.a.weight.detach().numpy()  # [12, 4, 3, 3], three groups
            wanted = [abs(weight[4 * (c // 4) : 4 * (c // 4) + 4, c % 4]).max() for c in range(12)]
            assert np.allclose(columns(captured, node), wanted)


# ---------------------------------------------------------------- the bias


class Sparse(nn.Module):
    """Three layers on a map that is empty nearly everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(m for i in range(3) for m in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())), nn.Conv2d(8, 5, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def sparse_task() -> Task:
    def frame(seed: int) -> tuple[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(1, 8, 48, 48)
        for _ in range(40):
            row, column = torch.randint(0, 48, (2,), generator=generator).tolist()
            x[0, :, row, column] = 4 * torch.rand(8, generator=generator)
        return (x,)

    def network() -> nn.Module:
        torch.manual_seed(1)
        found = Sparse().eval()
        with torch.no_grad():
            for layer in list(found.layers)[:-1:2]:
                layer.weight.uniform_(0.0, 0.03)  # type: ignore[operator,union-attr] # a convolution; errors of one sign add up
                layer.bias.uniform_(0.0, 1.0)  # type: ignore[operator,union-attr] # a convolution's bias
        return found

    return Task("sparse", network, lambda: frame(0), lambda: [frame(i) for i in range(6)])


def test_what_empty_cells_answer_is_corrected() -> None:
    """The error of an empty cell far from the edge is gone but for the last grid's; the plain program has it."""
    task = sparse_task()
    empty = (torch.zeros(1, 8, 48, 48),)
    network = task.model()
    wanted = network(*empty)[..., 10:-10, 10:-10].detach().double()
    errors = {}
    for recipe in ("minmax", "dfq"):
        model = api.quantize(task, recipe=recipe, precision="w4a4", target="simulated")
        found = model.qdq(empty)[0][..., 10:-10, 10:-10].double()
        errors[recipe] = float((found - wanted).abs().max())
        (step,) = model.outputs[0].qparams.scale  # type: ignore[union-attr] # a quantized output
    assert errors["dfq"] <= 0.55 * step, "the output's own grid, and half a step of the bias's"
    assert errors["minmax"] > step


# ---------------------------------------------------------------- weights that lie on a grid


@settings(deadline=None)
@given(st.integers(1, 127), st.integers(1, 40), st.floats(1e-4, 10), st.integers(0, 1000))
def test_weights_on_a_grid_keep_it(most: int, count: int, step: float, seed: int) -> None:
    integers = np.random.default_rng(seed).integers(-most, most + 1, (3, count))
    integers[:, 0] = most
    weights = torch.from_numpy((integers * np.float64(step)).astype(np.float32))
    scales = channel_scales(weights, 0, WEIGHT, "minmax").double().numpy()
    stored = np.round(weights.double().numpy() / scales[:, None])
    assert np.abs(stored).max() <= 127
    assert np.allclose(stored * scales[:, None], weights.double().numpy(), rtol=1e-5, atol=1e-6 * most * step)


def test_other_weights_fill_the_range() -> None:
    weights = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(channel_scales(weights, 0, WEIGHT, "minmax"), weights.abs().amax(1) / 127)


def test_ends_keep_eight_bits_of_what_they_read_and_answer() -> None:
    captured = capture(Sparse().eval(), (torch.zeros(1, 8, 48, 48),))
    plan = default_plan(captured, backends.target("simulated"), "minmax", "w8a4")
    raised = with_ends(captured, plan, "w8a8").layers
    assert raised["layers.0/conv2d"] == raised["layers.6/conv2d"] == "w8a8"
    assert raised["layers.2/conv2d"] == "w8a4"


def test_the_captured_network_is_lent() -> None:
    """Its graph and weights are what they were, bit for bit, also where a step fails; so a second calibration gives the same."""
    batches = [inputs(Neck, seed) for seed in range(3)]
    captured = capture(seeded(Neck), batches[0])
    target = backends.target("portable")
    annotation = annotate(captured, target, default_plan(captured, target, "dfq"))
    graph = str(captured.module.graph)
    before = {name: tensor.clone() for name, tensor in captured.module.state_dict().items()}
    found = []
    for recipe in ("dfq", "dfq", "minmax"):
        found.append(calibrate(captured, annotation, RECIPES[recipe], batches, api.silent)[1])
        assert str(captured.module.graph) == graph
        after = captured.module.state_dict()
        assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    one, again, plain = found
    assert one.constants and one.constants.keys() == again.constants.keys() and not plain.constants
    assert all(torch.equal(one.constants[key], again.constants[key]) for key in one.constants)
    assert all(torch.equal(one.weights[key].codes, again.weights[key].codes) for key in one.weights)
    assert one.activations == again.activations
    with pytest.raises(EdgeqError, match="stopped"):
        calibrate(captured, annotation, RECIPES["dfq"], batches, stopping)
    assert str(captured.module.graph) == graph


def stopping(stage: str, done: int, total: int | None) -> None:
    """Progress that is interrupted behind the equalisation."""
    if stage != "equalise channels" and not stage.startswith("read"):
        raise EdgeqError(f"stopped in {stage}")
