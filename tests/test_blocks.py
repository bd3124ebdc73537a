"""Weights in groups, along another axis and from a table, and 16-bit integers, through program, simulation, file and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeq
from edgeq import api, backends
from edgeq.calib.calibrate import calibrate
from edgeq.calib.recipes import RECIPES
from edgeq.calib.steps.reconstruct import Reconstruct
from edgeq.graph.annotate import annotate, default_plan
from edgeq.graph.capture import capture
from edgeq.graph.coded import Coded
from edgeq.graph.convert import convert
from edgeq.graph.integer import DEQUANTIZE_WEIGHT, coded_weight, read
from edgeq.graph.package import load_program
from edgeq.graph.simulate import simulate
from edgeq.run.tensors import tensors
from edgeq.spec import CHANNEL, EdgeqError, Grid, Tile

CHANNELS, INPUTS = 6, 96
GROUPS = Grid(4, symmetric=True, tile=Tile("group", 32))
POWERS = Grid(4, table=tuple(float(v) for v in (*(-(2.0**-k) for k in range(8)), *(2.0 ** (k - 8) for k in range(8)))))


def spelt(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, table: tuple[float, ...] | None, low: int
) -> np.ndarray:
    """What codes stand for, by NumPy: every scale repeated over the values that share it."""

    def wide(x: np.ndarray) -> np.ndarray:
        for axis, size in enumerate(codes.shape):
            x = x.repeat(size // x.shape[axis], axis)
        return x

    steps = codes.astype(np.float32) if table is None else np.asarray(table, np.float32)[codes.astype(int) - low]
    steps = steps if zero is None else steps - wide(zero).astype(np.float32)
    return steps * wide(scale)


def weights(kind: str) -> Coded:
    draw = np.random.default_rng(1)
    codes = torch.from_numpy(draw.integers(-7, 8, (CHANNELS, INPUTS)).astype(np.int8))
    scale = {
        "groups": (CHANNELS, INPUTS // 32),
        "inputs": (1, INPUTS),
        "table": (CHANNELS, 1),
        "zero": (CHANNELS, INPUTS // 32),
    }[kind]
    steps = torch.from_numpy(draw.uniform(0.01, 0.1, scale).astype(np.float32))
    grid = {"groups": GROUPS, "inputs": Grid(4, symmetric=True, tile=CHANNEL), "table": POWERS, "zero": Grid(4)}[kind]
    zero = torch.from_numpy(draw.integers(-3, 4, scale).astype(np.int32)) if kind == "zero" else None
    return Coded(grid, codes, steps, zero)


@pytest.mark.parametrize("kind", ["groups", "inputs", "table", "zero"])
def test_a_program_holds_what_a_grid_says(kind: str, tmp_path: Path) -> None:
    """Against NumPy and the module's own linear, before and after the file."""
    module, example = nn.Linear(INPUTS, CHANNELS).eval(), (torch.randn(3, INPUTS),)
    captured, target = capture(module, example), backends.target("simulated")
    annotation = annotate(captured, target, default_plan(captured, target, "minmax", "w4"))
    annotation, resolved = calibrate(captured, annotation, RECIPES["minmax"], [example], api.silent)
    (key,), coded = resolved.weights, weights(kind)
    resolved.weights[key] = coded
    program, labels = convert(captured, annotation, resolved)
    real = spelt(
        coded.codes.numpy(),
        coded.scale.numpy(),
        None if coded.zero is None else coded.zero.numpy(),
        coded.grid.table,
        -8,
    )
    wanted = F.linear(example[0], torch.from_numpy(real), module.bias)
    torch.export.save(program, tmp_path / "program.pt2")
    for held in (program, load_program(tmp_path / "program.pt2")):
        integers = read(held, labels)
        (node,) = (n for n in integers.module.graph.nodes if n.target in DEQUANTIZE_WEIGHT)
        back = coded_weight(integers.module, node)
        assert torch.equal(back.codes, coded.codes) and torch.equal(back.scale, coded.scale)
        assert back.grid.table == coded.grid.table and (back.grid.qmin, back.grid.qmax) == (
            coded.grid.qmin,
            coded.grid.qmax,
        )
        assert (back.grid.tile.size == 32) is (kind in ("groups", "zero"))
        np.testing.assert_array_equal(back.decode().numpy(), real)
        torch.testing.assert_close(held.module()(*example)[0], wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(simulate(integers, example, "ideal")[0], wanted, rtol=0, atol=1e-5)


def test_codes_of_16_bits_do_not_go_into_8() -> None:
    wide = Grid(16, symmetric=True, tile=CHANNEL)
    with pytest.raises(ValueError, match="16 bits do not fit"):
        Coded(wide, torch.zeros(2, 3, dtype=torch.int8), torch.ones(2, 1))
    assert Coded(wide, torch.full((2, 3), 32767, dtype=torch.int16), torch.ones(2, 1)).decode().max() == 32767


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.each = nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.each(self.stem(x).clamp(0, 6)).relu()
        return self.head((x + torch.sigmoid(x)).mean((2, 3)))


def quantized(tmp_path: Path, name: str) -> tuple[Small, list[tuple[Tensor]], edgeq.QuantizedModel]:
    torch.manual_seed(0)
    module, data = Small().eval(), [(torch.randn(2, 3, 16, 16),) for _ in range(3)]
    plan = tmp_path / f"{name}.json"
    plan.write_text(json.dumps({"target": "simulated", "recipe": "minmax", "layers": {}, "default": name}))
    model = edgeq.quantize(module, example_inputs=data[0], calibration=data, target="simulated", plan=plan)
    model.save(tmp_path / name)
    return module, data, edgeq.load(tmp_path / name)


def decibels(found: Tensor, wanted: Tensor) -> float:
    return float(10 * torch.log10(wanted.square().mean() / (found - wanted).square().mean()))


def test_activations_of_16_bits_cost_nothing_beside_8(tmp_path: Path) -> None:
    """Against the module itself, by the program, by the simulation, and by the same integers in NumPy's int64."""
    found = {}
    for name in ("w8a8", "w8a16", "w8"):
        module, data, model = quantized(tmp_path, name)
        assert bool(model.integers.ops) is (name != "w8")
        wanted = module(*data[0]).detach()
        values = {op: [] for op in model.integers.ops}
        simulated = simulate(
            model.integers, data[0], "ideal", watch=lambda n, q, v=values: v.get(n.name, []).append(q)
        )[0]
        assert torch.equal(model.qdq(data[0])[0], simulated) or name == "w8"
        found[name] = decibels(simulated, wanted)
        if name == "w8a16":
            assert {q.dtype for several in values.values() for q in several} == {torch.int16}
            assert max(int(q.abs().max()) for several in values.values() for q in several) > 30000
            assert not [row.key for row in tensors(model, data[0]) if row.role == "activation" and row.sqnr_db < 40]
    assert found["w8a16"] > found["w8a8"] + 3 and abs(found["w8a16"] - found["w8"]) < 3, found


def test_groups_are_calibrated_and_what_they_leave_over_stays_float(tmp_path: Path) -> None:
    """Scales against NumPy's largest weight of each group."""
    module, data, model = quantized(tmp_path, "w4g16")
    assert model.plan.layers["head/linear"] == "w4g16" and model.plan.layers["stem/conv2d"] == "fp32"
    (node,) = (n for n in model.integers.module.graph.nodes if n.target in DEQUANTIZE_WEIGHT)
    scale = coded_weight(model.integers.module, node).scale.numpy()
    largest = np.abs(module.head.weight.detach().numpy()).reshape(10, 2, 16).max(2)
    np.testing.assert_allclose(scale, largest / 7, rtol=1e-6)
    assert decibels(model.qdq(data[0])[0], module(*data[0]).detach()) > 20
    with pytest.raises(EdgeqError, match=r"litert cannot compute layer 'head/linear' in w4g16"):
        edgeq.export(model, "litert", folder=tmp_path / "file")


def test_a_group_that_does_not_divide_is_refused_by_name(tmp_path: Path) -> None:
    captured, target = capture(nn.Linear(40, 4).eval(), (torch.randn(1, 40),)), backends.target("simulated")
    plan = dataclasses.replace(default_plan(captured, target, "minmax", "w8"), layers={"linear": "w4g32"})
    with pytest.raises(EdgeqError, match=r"'linear' asks for w4g32, but its inputs are no multiple"):
        annotate(captured, target, plan)


def test_powers_of_two_as_a_precision(tmp_path: Path) -> None:
    """Every weight against the nearest of the grid's values by brute force in NumPy; zeros stay zero."""
    module, data, model = quantized(tmp_path, "w4log2")
    assert set(model.plan.layers[f"{name}/{kind}"] for name, kind in (("stem", "conv2d"), ("head", "linear"))) == {
        "w4log2"
    }
    nodes = [n for n in model.integers.module.graph.nodes if n.target in DEQUANTIZE_WEIGHT]
    assert len(nodes) == 3
    for node, layer in zip(nodes, (module.stem, module.each, module.head), strict=True):
        wanted = layer.weight.detach().numpy().reshape(len(layer.weight), -1).astype(np.float64)
        powers = np.array([sign * 2.0**-k for sign in (-1, 1) for k in range(7)] + [-(2.0**-7), 0.0])
        values = powers * np.abs(wanted).max(1)[:, None]
        nearest = np.abs(wanted[:, :, None] - values[:, None, :]).min(2)
        held = coded_weight(model.integers.module, node).decode().numpy().reshape(wanted.shape)
        np.testing.assert_allclose(np.abs(wanted - held), nearest, atol=1e-6)
    assert decibels(model.qdq(data[0])[0], module(*data[0]).detach()) > 10
    captured, target = capture(module, data[0]), backends.target("simulated")
    annotation = annotate(captured, target, default_plan(captured, target, "minmax", "w4log2"))
    learning = dataclasses.replace(RECIPES["minmax"], steps=(*RECIPES["minmax"].steps, Reconstruct()))
    with pytest.raises(EdgeqError, match="learns between neighbouring integers, and the weights of 'stem/conv2d'"):
        calibrate(captured, annotation, learning, data, api.silent)
    with pytest.raises(EdgeqError, match="in w4log2"):
        edgeq.export(model, "tvm", folder=tmp_path / "file")
