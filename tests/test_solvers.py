"""Solvers that read sums over the data: against brute force and against their papers' equations in NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeq.calib.gram import Gram, rows_of
from edgeq.calib.problem import DAMPING, Problem
from edgeq.calib.ranges.weights import channel_scales
from edgeq.calib.solvers import names, solver
from edgeq.graph.capture import capture
from edgeq.graph.coded import along, encode
from edgeq.spec import CHANNEL, EdgeqError, Grid

INT3 = Grid(3, symmetric=True, tile=CHANNEL)
SUMMING = [name for name in names() if solver(name).sums]


def problem(
    seed: int, rows: int, width: int, *, bias: bool, grid: Grid = INT3, noise: float = 0.0
) -> tuple[Problem, Tensor, Tensor]:
    """A linear layer with correlated inputs; returns it, its inputs in the quantized network and the outputs wanted."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    real = torch.randn(200, width, generator=generator) @ torch.randn(width, width, generator=generator) + 0.5
    seen = real + noise * torch.randn(real.shape, generator=generator)
    captured = capture(nn.Linear(width, rows), (seen,))
    (node,) = [n for n in captured.module.graph.nodes if n.op == "call_function"]
    (layout,) = rows_of(node)
    gram, every = Gram.empty(layout, weight), torch.arange(len(seen))
    gram.add(layout.patches(seen, every), layout.answers(real @ weight.T, every), torch.ones(len(seen)))
    start = encode(weight, grid, along(channel_scales(weight, 0, grid, "mse"), 0, 2))
    return Problem(weight, 0, start, [gram.finish()], bias=bias), seen, real @ weight.T


def error(weight: Tensor, seen: Tensor, wanted: Tensor, *, bias: bool) -> np.ndarray:
    """Mean squared error of each output, with the best bias where there is one, float64 [R]."""
    left = (seen.double() @ weight.double().T - wanted.double()).numpy()
    return left.var(0) if bias else np.square(left).mean(0)


@pytest.mark.parametrize("name", SUMMING)
@pytest.mark.parametrize("bias", [False, True])
def test_solvers_come_near_the_best_of_all_codes(name: str, bias: bool) -> None:
    choices = np.array(list(itertools.product(range(-3, 4), repeat=5)))
    over = []
    for seed in range(8):
        layer, seen, wanted = problem(seed, 3, 5, bias=bias)
        found = error(solver(name).solve(layer, layer.start).decode(), seen, wanted, bias=bias)
        near = error(layer.start.decode(), seen, wanted, bias=bias)
        for row in range(3):
            step = layer.start.scale[row].double().numpy()
            left = (choices * step) @ seen.double().numpy().T - wanted[:, row].double().numpy()
            best = (left.var(1) if bias else np.square(left).mean(1)).min()
            over.append((found[row] / best - 1, near[row] / best - 1))
    ours, nearest = np.mean(np.array(over), 0)
    assert ours < 0.6 * nearest, (ours, nearest)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from(SUMMING), st.sampled_from([0.0, 0.3]))
def test_codes_are_on_the_grid_and_better_takes_each_channels_best(
    seed: int, bias: bool, name: str, noise: float
) -> None:
    layer, seen, wanted = problem(seed, 5, 12, bias=bias, noise=noise)
    quick = {"adaround": "adaround:40", "flexround": "flexround:40"}.get(name, name)
    found = solver(quick).solve(layer, layer.start)
    assert found.grid == INT3 and int(found.codes.abs().max()) <= 3 and found.codes.dtype == torch.int8
    errors = [layer.errors(layer.split(coded.decode())) for coded in (layer.start, found)]
    kept, least = layer.better(layer.start, errors[0], found, errors[1])
    direct = [error(coded.decode(), seen, wanted, bias=bias) for coded in (layer.start, found, kept)]
    assert np.all(direct[2] <= direct[0] * (1 + 1e-4) + 1e-6)
    np.testing.assert_allclose(direct[2], np.minimum(direct[0], direct[1]), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(least, direct[2], rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gptq_is_its_papers_algorithm(seed: int, act_order: bool) -> None:
    layer, seen, _ = problem(seed, 4, 160, bias=False)  # more columns than go in one block
    x, free = seen.double().numpy(), layer.weight.double().numpy()
    hessian = x.T @ x / len(x)
    hessian += DAMPING * np.mean(np.diag(hessian)) * np.eye(160)
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(160)
    inverse = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    free, scale, codes = free[:, order], layer.start.scale.double().numpy()[:, 0], np.empty_like(free)
    for j in range(160):
        codes[:, order[j]] = np.clip(np.round(free[:, j] / scale), -3, 3)
        left = (free[:, j] - codes[:, order[j]] * scale) / inverse[j, j]
        free[:, j:] -= left[:, None] * inverse[j, j:]
    found = solver("gptq:act-order" if act_order else "gptq").solve(layer, layer.start)
    np.testing.assert_array_equal(found.codes.numpy(), codes)  # float32 decides no tie otherwise with these seeds


def test_quantease_stops_where_no_single_code_helps() -> None:
    layer, *_ = problem(5, 3, 10, bias=False)
    found = solver("quantease").solve(layer, layer.start)
    hessian, weights = (t.double().numpy()[0] for t in layer.parts[0].quadratic(bias=False))
    scale = layer.start.scale.double().numpy()[:, 0]

    def distance(codes: np.ndarray, row: int) -> float:
        moved = codes * scale[row] - weights[row]
        return float(moved @ hessian @ moved)

    for row, j in itertools.product(range(3), range(10)):
        codes = found.codes[row].double().numpy()
        here = distance(codes, row)
        for other in range(-3, 4):
            changed = codes.copy()
            changed[j] = other
            assert distance(changed, row) >= here * (1 - 1e-5)


def test_flexround_moves_weights_further_than_to_a_neighbour_and_scales_too() -> None:
    layer, seen, wanted = problem(1, 4, 24, bias=True)
    found = solver("flexround:200").solve(layer, layer.start)
    before, after = (error(c.decode(), seen, wanted, bias=True).sum() for c in (layer.start, found))
    assert after < 0.6 * before
    assert not torch.equal(found.scale, layer.start.scale)


def test_options_that_make_no_sense_are_named() -> None:
    for text, words in (
        ("gptq:actorder", "write gptq or gptq:act-order"), ("adaround:0", "adaround:250"), ("quantease:many", "quantease:25"),
        ("squant:3", "takes no option"), ("magic", f"use {', '.join(names())}"),
    ):  # fmt: skip
        with pytest.raises(EdgeqError, match=words):
            solver(text)


@pytest.mark.parametrize("name", SUMMING)
def test_inputs_that_hardly_vary_are_solved(name: str) -> None:
    """As a head behind a mean over a large map reads them: what the bias takes out of their squares is nearly all of these."""
    generator = torch.Generator().manual_seed(0)
    weight, base = torch.randn(4, 24, generator=generator), 3 + torch.rand(24, generator=generator)
    seen = base + 1e-4 * torch.randn(8, 24, generator=generator)
    captured = capture(nn.Linear(24, 4), (seen,))
    (node,) = [n for n in captured.module.graph.nodes if n.op == "call_function"]
    (layout,) = rows_of(node)
    gram, every = Gram.empty(layout, weight), torch.arange(len(seen))
    gram.add(layout.patches(seen, every), layout.answers(seen @ weight.T, every), torch.ones(len(seen)))
    start = encode(weight, INT3, along(channel_scales(weight, 0, INT3, "mse"), 0, 2))
    found = solver(name).solve(Problem(weight, 0, start, [gram.finish()], bias=True), start)
    assert bool(found.scale.isfinite().all()) and found.codes.abs().max() <= 3
