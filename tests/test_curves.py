"""Functions of one tensor between integers: which operators belong to one, what its table is, what each runtime makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import edgeq
from edgeq.backends import RUNTIMES, backend
from edgeq.graph.curves import curves
from edgeq.run.curves import Tried, tried
from edgeq.run.place import Place
from edgeq.spec import EdgeqWarning

Function = Callable[[Any], Any]
ERF = np.vectorize(math.erf)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def sqnr(wanted: Tensor, got: Tensor) -> float:
    """Signal to noise of what float wants, dB."""
    return float(10 * torch.log10((wanted**2).sum() / ((got - wanted) ** 2).sum()))


def softplus(x: Any) -> Any:
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


# as users spell them, and what they are in NumPy's float64
FUNCTIONS: dict[str, tuple[Function, Function]] = {
    "silu": (F.silu, lambda x: x * sigmoid(x)),
    "swish": (lambda x: x * torch.sigmoid(x), lambda x: x * sigmoid(x)),
    "hardswish": (F.hardswish, lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "relu6 swish": (lambda x: x * F.relu6(x + 3) / 6, lambda x: x * np.clip(x + 3, 0, 6) / 6),
    "hardsigmoid": (F.hardsigmoid, lambda x: np.clip(x + 3, 0, 6) / 6),
    "gelu": (F.gelu, lambda x: x * (1 + ERF(x / math.sqrt(2))) / 2),
    "tanh gelu": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    ),
    "mish": (F.mish, lambda x: x * np.tanh(softplus(x))),
    "softplus": (F.softplus, softplus),
    "early softplus": (lambda x: F.softplus(x, 2, 1), lambda x: np.where(2 * x > 1, x, softplus(2 * x) / 2)),
    "log sigmoid": (F.logsigmoid, lambda x: -softplus(-x)),
    "elu": (F.elu, lambda x: np.where(x > 0, x, np.expm1(x))),
    "celu": (lambda x: F.celu(x, 2.0), lambda x: np.where(x > 0, x, 2 * np.expm1(x / 2))),
    "selu": (F.selu, lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))),
    "leaky": (lambda x: F.leaky_relu(x, 0.1), lambda x: np.where(x > 0, x, 0.1 * x)),
    "where": (lambda x: torch.where(x > 0, x, 0.3 * x), lambda x: np.where(x > 0, x, 0.3 * x)),
    "abs": (torch.abs, np.abs),
    "square": (torch.square, np.square),
    "cube": (lambda x: x**3, lambda x: x**3),
    "root": (lambda x: torch.sqrt(F.relu(x) + 1), lambda x: np.sqrt(np.maximum(x, 0) + 1)),
    "bell": (lambda x: 1 / (1 + x * x), lambda x: 1 / (1 + x * x)),
    "sine": (torch.sin, np.sin),
    "reflected": (lambda x: 1 - x, lambda x: 1 - x),
    "bent twice": (
        lambda x: F.leaky_relu(torch.tanh(x) * 2 - 1, 0.1),
        lambda x: np.where(np.tanh(x) > 0.5, 1, 0.1) * (np.tanh(x) * 2 - 1),
    ),
}  # fmt: skip


class Bent(nn.Module):
    """One function between two convolutions."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1), function

    def forward(self, x: Tensor) -> Any:
        return self.last(self.function(self.first(x)))


class Many(nn.Module):
    """All functions beside each other, a convolution before and behind each."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Bent(FUNCTIONS[name][0]) for name in names)

    def forward(self, x: Tensor) -> Any:
        return tuple(branch(x) for branch in self.branches)


def quantized(
    network: nn.Module, folder: Path | None = None, shape: tuple[int, ...] = (1, 3, 8, 8), **options: Any
) -> Any:
    torch.manual_seed(0)
    data = [(torch.randn(shape),) for _ in range(3)]
    model = edgeq.quantize(
        network.eval(), example_inputs=data[0], calibration=data, output=folder, **{"recipe": "minmax", **options}
    )
    return model, data


def only(model: Any, kind: str = "curve") -> Any:
    (op,) = (op for op in model.integers.ops.values() if op.kind == kind)
    return op


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_curves_table_is_its_function_in_float64(name: str) -> None:
    ours, theirs = FUNCTIONS[name]
    torch.manual_seed(1)
    model, _ = quantized(Bent(ours))
    op = only(model)
    given, made = op.input_qparams[0], op.output_qparams
    x = (np.arange(-128, 128) - given.zero) * given.step
    wanted = np.clip(np.rint(theirs(x) / made.step) + made.zero, -128, 127)
    found = op.entries.numpy()
    near = np.abs(theirs(x) / made.step - np.floor(theirs(x) / made.step) - 0.5) < 1e-6  # halves: either is right
    assert np.array_equal(found[~near], wanted[~near]) and np.abs(found - wanted).max() <= 1


def test_every_runtime_computes_curves_and_their_bytes_are_the_simulations(tmp_path: Path) -> None:
    names = [
        name for name in FUNCTIONS if name != "early softplus"
    ]  # ExecuTorch's own passes fail on it behind integers
    torch.manual_seed(2)
    network = Many(names)
    model, data = quantized(network, tmp_path / "model")
    assert not model.islands and sum(op.kind == "curve" for op in model.integers.ops.values()) == len(names)
    with torch.no_grad():
        for name, wanted, got in zip(names, network(*data[0]), model.qdq(data[0]), strict=True):
            assert sqnr(wanted, got) > 20, name
    for runtime in RUNTIMES:
        artifact = edgeq.export(model, runtime)
        found = edgeq.verify(model, to=[runtime])["backends"][runtime]
        assert (found["max_lsb"], found["exact_share"]) == (0, 1), runtime
        assert found["float_ops"] == 0, [row for row in artifact.coverage if row.status == "float island"]
        assert found["table_ops"] == (0 if runtime == "tvm" else len(names))
        for kernels in found["kernels"].values():
            told = kernels["curves"]
            assert told["worst"] <= 1 and told["tried"] == told["curves"] * 256 == 256 * found["table_ops"]


def test_tvms_lookup_is_the_table(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model, _ = quantized(Bent(F.silu), tmp_path / "model")
    from edgeq.graph.trial import entries, trial

    op = only(model)
    program, labels, inputs = trial(model.integers, [op])
    artifact = backend("tvm").lower(program, tmp_path, name="alone", layers=labels)
    (answers,) = Place().answers(artifact, [inputs])
    assert torch.equal(entries(op, answers[0]), op.entries)


def test_a_chain_is_one_curve_and_what_is_read_twice_ends_one() -> None:
    def chained(x: Tensor) -> Tensor:
        y = F.silu(x * 2 + 1)
        return y * torch.sigmoid(y) + F.avg_pool2d(y, 1)

    torch.manual_seed(4)
    model, _ = quantized(Bent(chained))
    found = [sorted(model.labels[n] for n in op.absorbed) for op in model.integers.ops.values() if op.kind == "curve"]
    assert found == [["silu"], ["mul#2", "sigmoid"]] or found == [["silu"], ["mul", "sigmoid"]]


def test_a_clip_stays_with_the_layer_that_fuses_it() -> None:
    torch.manual_seed(4)
    model, _ = quantized(Bent(lambda x: F.relu(x) * 0.5 - 0.1))
    assert next(op.kind for op in model.integers.ops.values()) == "conv2d"
    relu = next(n for n in model.integers.module.graph.nodes if "relu" in n.name)
    assert relu.name in next(iter(model.integers.ops.values())).absorbed
    graph = model.integers.module.graph
    assert all(relu not in curve.nodes for curve in curves(graph, lambda n: True).values())


def test_scores_at_the_end_keep_their_floats() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return torch.sigmoid(self.layer(x)).flatten(2)

    torch.manual_seed(5)
    model, _ = quantized(Scores())
    assert model.islands["sigmoid"] == "nothing computes in integers with what it gives"
    assert {op.kind for op in model.integers.ops.values()} == {"conv2d"}


def test_a_layer_that_the_plan_keeps_in_float_is_no_table() -> None:
    torch.manual_seed(6)
    model, _ = quantized(Bent(F.silu), keep_float=["silu"])
    assert {op.kind for op in model.integers.ops.values()} == {"conv2d"} and "silu" in model.islands


def test_a_pole_within_the_range_is_told() -> None:
    torch.manual_seed(7)
    with pytest.warns(EdgeqWarning, match=r"'reciprocal' stays in float: it has a pole, or is no real number"):
        model, _ = quantized(Bent(torch.reciprocal))
    assert {op.kind for op in model.integers.ops.values()} == {"conv2d"}


def test_sixteen_bits_have_a_table_too() -> None:
    torch.manual_seed(8)
    model, data = quantized(Bent(F.silu), target="simulated", precision="w8a16")
    assert len(only(model).entries) == 65536
    got = model.simulate(data[0], "ideal")[0]
    assert sqnr(model.qdq(data[0])[0], got) > 60


def test_what_differs_is_counted_and_said(tmp_path: Path) -> None:
    torch.manual_seed(9)
    model, _ = quantized(Bent(F.silu), tmp_path / "model")
    op = only(model)
    op.entries[3] += 2  # another meaning than the runtime's
    found = tried(model, "litert", Place(), "xnnpack")
    assert (found.curves, found.tried, found.differing, found.worst) == (1, 256, 1, 2)
    assert found.words().endswith("of 256 inputs tried 1 entry differs from their tables, by at most 2")
    assert Tried().words() == ""
